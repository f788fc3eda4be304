import ml_dtypes
import numpy as np
import pytest
from frameworks import jax, torch

from ckptmgr.box import Box
from ckptmgr.memory import MemorySource
from ckptmgr.spec import TensorSpec

SPEC = TensorSpec("float32", (2, 3))


@pytest.mark.parametrize("make", [np.array, lambda value: torch.tensor(value), lambda value: jax.numpy.array(value)])
def test_leaves_of_any_framework_are_read_as_host_arrays(make) -> None:
    source = MemorySource({"w": make(np.arange(6, dtype=np.float32).reshape(2, 3))}, {"w": SPEC})

    assert source.read("w").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert source.read("w", Box((0, 1), (2, 2))).tolist() == [[1], [4]]


def test_host_memory_is_not_copied() -> None:
    array, tensor = np.zeros(4, ml_dtypes.bfloat16), torch.zeros(4, dtype=torch.bfloat16)
    source = MemorySource({"numpy": array, "torch": tensor}, dict.fromkeys(("numpy", "torch"), TensorSpec("bfloat16", (4,))))

    assert np.shares_memory(source.read("numpy", Box((1,), (3,))), array)
    assert source.read("torch").ctypes.data == tensor.data_ptr()


def test_out_is_filled_and_given_back() -> None:
    source = MemorySource({"w": np.arange(6, dtype=">f4").reshape(2, 3)}, {"w": SPEC})
    out = np.zeros((2, 2), np.float32)

    assert source.read("w", Box((0, 1), (2, 3)), out) is out
    assert out.tolist() == [[1, 2], [4, 5]]


def test_out_of_another_dtype_is_refused() -> None:
    source = MemorySource({"w": np.zeros((2, 3), np.float32)}, {"w": SPEC})

    with pytest.raises(TypeError, match="cast"):
        source.read("w", None, np.zeros((2, 3), np.float64))


def test_it_lies_in_no_file_and_holds_nothing() -> None:
    with MemorySource({"w": np.zeros((2, 3), np.float32)}, {"w": SPEC}, aliases={"v": "w"}) as source:
        assert source.extents("w") == ()
        assert (source.specs, source.aliases, source.metadata, source.blobs) == ({"w": SPEC}, {"v": "w"}, {}, {})


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="absent"):
        MemorySource({}, {}).read("absent")


@pytest.mark.parametrize(
    "make", [lambda: np.array([b"ab"]), lambda: np.zeros(1, ">f4").view(np.recarray), lambda: torch.zeros(1)]
)
def test_whole_tensors_are_what_read_gives_whatever_is_among_them(make) -> None:
    array = np.ones(3, np.float32)
    source = MemorySource({"a": array, "b": make()}, {})

    assert source.whole(["a"])[0] is array
    first, second = source.whole(["b", "a"])
    assert (first.dtype, first.tolist()) == (source.read("b").dtype, source.read("b").tolist())
    assert second is array
