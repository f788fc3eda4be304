import numpy as np
import pytest

from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.strings import from_strings


@pytest.mark.parametrize(
    ("values", "tag", "reason"),
    [
        ([b"a"], "i4", "not known"),
        ([b"a"], "S", "not known"),
        ([b"a"], "S1234567890", "not known"),
        ([b"\xff"], "str", "not UTF-8"),
        ([b"abc"], "S2", "longer than its width"),
        (["\u20ac\u20ac".encode()], "U1", "longer than its width"),
        ([b""] * 100, "U999999999", "far less"),
        ([b"a"], "S999999999", "far less"),
    ],
)
def test_damaged_string_tensors_are_refused_before_memory_is_taken(values: list[bytes], tag: str, reason: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=reason):
        from_strings(np.array(values, object), tag)


def test_wide_arrays_of_short_strings_come_back_wide() -> None:
    assert from_strings(np.array([b"a", b""], object), "U1000").dtype == np.dtype("U1000")
