"""Promise 7: what comes back through a managed step has the same dtype and the same bytes, whatever it was."""

import math
import random
import tempfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptmgr import CheckpointManager

DTYPES = [
    *("bool", "uint8", "int8", "int16", "uint16", "float16", "int32", "uint32", "float32", "complex64"),
    *("float64", "int64", "uint64", "bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu"),
    *("float8_e4m3fnuz", "float8_e5m2fnuz"),
]
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (4, 5), (2, 3, 4), (1, 1, 1, 5)]


def dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def bits(array: np.ndarray) -> bytes:
    """The elements in C order as little-endian bytes."""
    native = array.astype(array.dtype.newbyteorder("="))
    return np.ascontiguousarray(native).tobytes()


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Random bit patterns of any dtype and shape, lying in memory in any way."""
    kind, shape = dtype(draw(st.sampled_from(DTYPES))), draw(st.sampled_from(SHAPES))
    size = math.prod(shape) * kind.itemsize
    raw = random.Random(draw(st.integers(0, 1 << 32))).randbytes(size)
    array = np.frombuffer(raw, np.uint8).copy()
    array = (array & 1 if kind.name == "bool" else array).view(kind).reshape(shape)
    match draw(st.sampled_from(["c", "fortran", "strided", "reversed", "read-only", "big-endian", "broadcast"])):
        case "fortran":
            return np.asfortranarray(array)
        case "strided" if shape:
            return np.repeat(array, 2, axis=0)[::2]
        case "reversed" if shape:
            return array[::-1]
        case "read-only":
            array.flags.writeable = False
        case "big-endian" if kind.kind in "iufc" and kind.name not in vars(ml_dtypes):
            return array.astype(kind.newbyteorder(">"))
        case "broadcast":
            return np.broadcast_to(array, (3, *shape))
    return array


@settings(max_examples=60)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), arrays(), max_size=6))
def test_arrays_of_every_dtype_shape_and_memory_order(state):
    with tempfile.TemporaryDirectory() as folder:
        manager = CheckpointManager(folder)
        manager.save(1, state)

        restored = manager.restore(1).state

    assert list(restored) == list(state)
    for name, array in state.items():
        assert restored[name].dtype == array.dtype.newbyteorder("=")
        assert restored[name].shape == array.shape
        assert bits(restored[name]) == bits(array)


@settings(max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=9) | st.complex_numbers()
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
        lambda inner: st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4) | st.integers(-9, 9), inner, max_size=3),
        max_leaves=12,
    )
)  # fmt: skip
def test_python_values_of_every_kind(value):
    with tempfile.TemporaryDirectory() as folder:
        manager = CheckpointManager(folder)
        manager.save(1, {"value": value})

        restored = manager.restore(1).state["value"]

    assert repr(restored) == repr(value)
    assert type(restored) is type(value)


@pytest.mark.parametrize("name", DTYPES)
def test_numpy_scalars_keep_their_dtype_and_bits(tmp_path, name):
    scalar = np.frombuffer(b"\x01" * dtype(name).itemsize, dtype(name))[0]
    manager = CheckpointManager(tmp_path)
    manager.save(1, {"scalar": scalar})

    restored = manager.restore(1).state["scalar"]

    assert type(restored) is type(scalar)
    assert restored.tobytes() == scalar.tobytes()


def drawn(generators: dict) -> list[float]:
    methods = {"pcg": "random", "mt": "normal", "philox": "random", "legacy": "normal", "python": "gauss"}
    return [getattr(generators[name], method)() for name, method in methods.items()]


def test_random_generators_go_on_where_they_were(tmp_path):
    generators = {
        "pcg": np.random.default_rng(1),
        "mt": np.random.Generator(np.random.MT19937(2)),
        "philox": np.random.Generator(np.random.Philox(3)),
        "legacy": np.random.RandomState(4),
        "python": random.Random(5),
    }
    generators["legacy"].normal()
    generators["python"].gauss()
    manager = CheckpointManager(tmp_path)
    manager.save(1, generators)
    expected = drawn(generators)
    fresh = {
        "pcg": np.random.default_rng(),
        "mt": np.random.Generator(np.random.MT19937()),
        "philox": np.random.Generator(np.random.Philox()),
        "legacy": np.random.RandomState(),
        "python": random.Random(),
    }

    pcg = fresh["pcg"]
    manager.restore(1, into=fresh)

    assert drawn(fresh) == expected
    assert fresh["pcg"] is pcg
    assert drawn(manager.restore(1).state) == expected
