"""TensorFlow bundles keep every promise that ckptmgr makes of a format."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from ckptmgr import transfer
from ckptmgr.storage import Folder
from ckptmgr.testing import BackendContract
from ckptmgr.transfer import Want
from ckptmgr_tf_bundle import TFBundleBackend

GOLDEN = Path(__file__).parents[1] / "golden" / "tf_bundle"
REFUSED = {
    *("float96", "float128", "complex192", "complex256", "datetime64[ns]", "timedelta64[ns]"),
    *("float8_e3m4", "float8_e4m3", "float8_e8m0fnu", "float6_e2m3fn", "float6_e3m2fn"),
    *("packed_float4_e2m1fn", "packed_float6_e2m3fn", "packed_float6_e3m2fn"),
}


class TestObjectBased(BackendContract):
    backend = TFBundleBackend()
    refuses = frozenset(REFUSED)

    def test_a_file_with_misaligned_tensors_of_another_writer_is_read(self, folder: Folder, tmp_path: Path) -> None:
        for file in (GOLDEN / "dtypes").iterdir():  # the contract's own hook is for formats of one file
            shutil.copy(file, tmp_path)

        with self.backend.open(folder, "all") as source:
            odd = [name for name in source.specs if source.extents(name) and source.extents(name)[0].offset % 8]
            read, _ = transfer.read(source, map(Want, odd))

            assert len(odd) > 5
            for array, name in zip(read, odd, strict=True):
                assert array.flags.aligned
                assert np.array_equal(array.reshape(-1).view(np.uint8), source.read(name).reshape(-1).view(np.uint8)), name


class TestNameBased(TestObjectBased):
    backend = TFBundleBackend(form="name")


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="'graph' or 'keys'"):
        TFBundleBackend(names="key")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'object' or 'name'"):
        TFBundleBackend(form="graph")  # type: ignore[arg-type]
