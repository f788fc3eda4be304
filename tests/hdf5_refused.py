"""HDF5 files that must be refused: by name, and cheaply."""

import pytest
from bounds import cheap
from hdf5_images import Image, header, parsed

from ckptmgr.errors import CorruptCheckpointError


def refused(image: Image, root: int, problem: str, path: str | None, leaf_k: int = 4) -> None:
    """The file is refused for that, naming the object, cheaply."""
    data = image.finished(root, leaf_k)
    with cheap(), pytest.raises(CorruptCheckpointError, match=problem) as caught:
        parsed(data)
    assert (caught.value.file, caught.value.tensor) == ("x.h5", path)
    assert "run/x.h5" in str(caught.value)


def x_is(messages: list[bytes], problem: str) -> None:
    image = Image()
    refused(image, image.group([b"x"], [image.put(header(*messages))]), problem, "/x")
