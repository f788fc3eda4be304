"""Leaves of the real TensorFlow."""

from typing import Any

import numpy as np
import pytest
import states
from frameworks import tf

from ckptmgr import arrays, tree
from ckptmgr.box import Box
from ckptmgr.errors import UnsupportedLeafError
from ckptmgr.spec import TensorSpec

PLAIN = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]
PLAIN += ["complex64", "complex128", "bfloat16"]
SUBBYTE = ["int2", "uint2", "int4", "uint4", "float4_e2m1fn"]
OTHERS = ["float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz", *SUBBYTE]
NO_VARIABLES = {"float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz"}


def numpy_of(dtype: str, shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    array = states.bits(dtype, shape, seed)
    return np.random.default_rng(seed).integers(0, 2, shape).astype(array.dtype) if dtype in SUBBYTE else array


@pytest.mark.parametrize("dtype", [*PLAIN, *OTHERS])
@pytest.mark.parametrize("shape", [(3, 4), (), (0, 3)])
def test_eager_tensor_of_every_dtype_comes_back_as_a_new_one(dtype: str, shape: tuple[int, ...]) -> None:
    one, other = tf.constant(numpy_of(dtype, shape)), tf.constant(numpy_of(dtype, shape, seed=2))
    before = other.numpy().tobytes()

    restored = states.restored({"w": one}, {"w": other})["w"]

    assert restored is not other
    assert restored.dtype == one.dtype
    assert restored.numpy().tobytes() == one.numpy().tobytes()
    assert other.numpy().tobytes() == before


@pytest.mark.parametrize("dtype", sorted({*PLAIN, *OTHERS} - NO_VARIABLES))
def test_variable_of_every_dtype_is_assigned_to(dtype: str) -> None:
    one, other = tf.Variable(numpy_of(dtype, (3, 4))), tf.Variable(numpy_of(dtype, (3, 4), seed=2))

    restored = states.restored({"w": one}, {"w": other})["w"]

    assert restored is other
    assert other.numpy().tobytes() == one.numpy().tobytes()


@pytest.mark.parametrize("dtype", PLAIN)
def test_tensors_are_seen_without_a_copy(dtype: str) -> None:
    one = tf.constant(numpy_of(dtype, (3, 4)))

    host = arrays.host_array(one)
    part = arrays.host_array(one, Box((1, 1), (3, 4)))

    assert np.shares_memory(host, arrays.host_array(one))
    assert np.shares_memory(part, host)
    assert not host.flags.writeable
    assert host.dtype.name == dtype


def test_view_of_a_variable_stays_what_it_was_when_it_was_taken() -> None:
    variable = tf.Variable([1.0, 2.0])

    view = arrays.host_array(variable)
    variable.assign_add([1.0, 1.0])

    assert view.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("shape", [(2,), (), (0,)])
def test_string_tensors_come_back(shape: tuple[int, ...]) -> None:
    values = np.array([b"a\0", "\xe4".encode()][: int(np.prod(shape))], object).reshape(shape)
    one, other = tf.constant(values, tf.string), tf.Variable(np.full(shape, b"?", object), dtype=tf.string)

    restored = states.restored({"a": one, "b": one}, {"a": tf.constant(np.full(shape, b"?", object), tf.string), "b": other})
    found = states.restored({"a": one})["a"]

    assert arrays.describe(one) == TensorSpec("string", shape)
    assert restored["a"].dtype == tf.string
    assert np.array(restored["a"].numpy(), object).tolist() == values.tolist()
    assert restored["b"] is other
    assert np.array(other.numpy(), object).tolist() == values.tolist()
    assert found.tolist() == values.tolist()


def test_one_variable_in_two_places_is_stored_once() -> None:
    variable, other = tf.Variable([1.0]), tf.Variable([2.0])

    restored = states.restored({"a": variable, "b": variable}, {"a": other, "b": other})

    assert tree.flatten({"a": variable, "b": variable}).aliases == {"b": "a"}
    assert restored["a"] is restored["b"] is other
    assert other.numpy().tolist() == [1.0]


def test_variable_of_open_shape_has_the_shape_of_its_value() -> None:
    variable = tf.Variable([1.0, 2.0], shape=tf.TensorShape([None]))

    assert arrays.describe(variable) == TensorSpec("float32", (2,))


def test_specs_ask_for_tensors() -> None:
    restored = states.restored({"w": np.ones(2, np.float32)}, {"w": tf.TensorSpec((2,), tf.float32)})["w"]

    assert tf.is_tensor(restored)
    assert restored.numpy().tolist() == [1, 1]
    with pytest.raises(UnsupportedLeafError, match="unknown shape"):
        states.restored({"w": np.ones(2, np.float32)}, {"w": tf.TensorSpec((None,), tf.float32)})


def test_symbolic_and_quantized_tensors_are_refused_by_their_path() -> None:
    @tf.function
    def traced(x: Any) -> Any:
        with pytest.raises(UnsupportedLeafError, match="'a/0' is a symbolic"):
            tree.flatten({"a": [x]})
        return x

    traced(tf.constant(1.0))
    with pytest.raises(UnsupportedLeafError, match="'q' is a TensorFlow tensor of qint8"):
        tree.flatten({"q": tf.constant(np.zeros(2, np.int8), tf.qint8)})
    with pytest.raises(UnsupportedLeafError, match=r"'r' is of type \S*RaggedTensor"):
        tree.flatten({"r": tf.ragged.constant([[1], [2, 3]])})
    with pytest.raises(UnsupportedLeafError, match=r"'s' is of type \S*SparseTensor"):
        tree.flatten({"s": tf.sparse.from_dense([1, 0])})


def test_array_of_a_dtype_that_tensorflow_has_not_stays_a_numpy_array() -> None:
    array = states.bits("float6_e2m3fn", (2,), 1)

    assert arrays.make("tensorflow", array) is array
    assert tf.is_tensor(arrays.make("tensorflow", np.zeros(2)))
