"""Leaves of the real jax."""

import collections
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import states
from frameworks import jax

from ckptmgr import arrays, tree
from ckptmgr.box import Box
from ckptmgr.errors import StateMismatchError, UnsupportedLeafError
from ckptmgr.spec import TensorSpec

# float6 and 16-bit parts of complex numbers are in ml_dtypes alone.
DTYPES = [name for name in states.ML_DTYPES if not name.startswith(("float6", "complex", "bcomplex"))]
DTYPES += ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]
DTYPES += ["complex64", "complex128"]
SUBBYTE = ("int1", "uint1", "int2", "uint2", "int4", "uint4", "float4_e2m1fn")


def numpy_of(dtype: str, shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    # What is above the bits of small elements is none of their value.
    array = states.bits(dtype, shape, seed)
    return np.random.default_rng(seed).integers(0, 2, shape).astype(array.dtype) if dtype in SUBBYTE else array


def leaf(dtype: str, shape: tuple[int, ...] = (3, 4), seed: int = 1) -> Any:
    with jax.enable_x64(True):
        return jax.device_put(numpy_of(dtype, shape, seed))


def pointer(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 4), (), (0, 3)])
def test_array_of_every_dtype_comes_back_as_a_new_one(dtype: str, shape: tuple[int, ...]) -> None:
    one, other = leaf(dtype, shape), leaf(dtype, shape, seed=2)
    before = np.asarray(other).tobytes()

    restored = states.restored({"w": one}, {"w": other})["w"]
    found = states.restored({"w": one})["w"]

    assert isinstance(restored, jax.Array)
    assert restored.dtype == one.dtype
    assert np.asarray(restored).tobytes() == np.asarray(one).tobytes() == found.tobytes()
    assert np.asarray(other).tobytes() == before
    assert type(found) is np.ndarray


@pytest.mark.parametrize("dtype", sorted(set(DTYPES) - set(SUBBYTE)))
def test_arrays_are_seen_without_a_copy(dtype: str) -> None:
    one = leaf(dtype)

    host = arrays.host_array(one)
    part = arrays.host_array(one, Box((1, 1), (3, 4)))

    assert pointer(host) == one.unsafe_buffer_pointer()
    assert np.shares_memory(part, host)
    assert part.tolist() == numpy_of(dtype, (3, 4))[1:3, 1:4].tolist() or part.dtype.kind not in "biu"


def test_64_bit_arrays_come_back_even_where_jax_is_set_to_32_bits() -> None:
    assert not jax.config.jax_enable_x64

    restored = states.restored({"w": leaf("float64")}, {"w": leaf("float64", seed=2)})["w"]

    assert restored.dtype == np.float64


def test_restored_arrays_are_on_the_devices_of_the_template() -> None:
    device = jax.devices()[-1]
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("x",))
    sharded = jax.device_put(np.zeros((8, 2), np.float32), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    into = {"placed": jax.device_put(np.zeros(2, np.float32), device), "sharded": sharded, "free": jax.numpy.zeros(2)}
    state = {
        "placed": np.ones(2, np.float32),
        "sharded": np.arange(16, dtype=np.float32).reshape(8, 2),
        "free": np.ones(2, np.float32),
    }

    restored = states.restored(state, into)

    assert restored["placed"].sharding == into["placed"].sharding
    assert restored["placed"].committed
    assert restored["sharded"].sharding == into["sharded"].sharding
    assert np.asarray(restored["sharded"]).tolist() == state["sharded"].tolist()
    assert not restored["free"].committed


def test_weak_types_stay_weak() -> None:
    into = {"step": jax.numpy.asarray(1.0), "count": jax.numpy.asarray(3)}

    restored = states.restored({"step": np.float32(2.5).reshape(()), "count": np.array(7, np.int32)}, into)

    assert restored["step"].weak_type
    assert restored["count"].weak_type
    assert (restored["step"].item(), restored["count"].item()) == (2.5, 7)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
@pytest.mark.parametrize("count", [None, 3])
def test_typed_keys_come_back_as_keys(impl: str, count: int | None) -> None:
    key, into = jax.random.key(7, impl=impl), jax.random.key(0, impl=impl)
    if count is not None:
        key, into = jax.random.split(key, count), jax.random.split(into, count)

    found = states.restored({"key": key})["key"]
    restored = states.restored({"key": key}, {"key": into})["key"]

    assert tree.flatten({"key": key}).skeleton == {"key": {"$tensor": "key", "kind": f"jax.key/{impl}"}}
    for each in (found, restored):
        assert each.dtype == key.dtype
        assert each.shape == key.shape
        assert jax.random.key_data(each).tolist() == jax.random.key_data(key).tolist()


def test_key_of_another_kind_is_no_match() -> None:
    with pytest.raises(StateMismatchError, match=r"wanted uint32\[4\] of jax.key/unsafe_rbg, found uint32\[4\] of jax.key/rbg"):
        states.restored({"key": jax.random.key(1, impl="rbg")}, {"key": jax.random.key(1, impl="unsafe_rbg")})


def test_shapes_without_values_ask_for_arrays() -> None:
    into = jax.eval_shape(lambda: {"w": jax.numpy.zeros((2, 3), jax.numpy.bfloat16), "key": jax.random.key(0)})
    state = {"w": jax.numpy.ones((2, 3), jax.numpy.bfloat16), "key": jax.random.key(5)}

    restored = states.restored(state, into)

    assert isinstance(restored["w"], jax.Array)
    assert restored["w"].tolist() == [[1] * 3] * 2
    assert jax.random.key_data(restored["key"]).tolist() == jax.random.key_data(state["key"]).tolist()
    with pytest.raises(UnsupportedLeafError, match="describes an array"):
        tree.flatten(into)


def test_one_array_in_two_places_is_stored_once_and_comes_back_once() -> None:
    w, v = jax.numpy.ones(3), jax.numpy.zeros(3)

    restored = states.restored({"a": w, "b": w}, {"a": v, "b": v})

    assert tree.flatten({"a": w, "b": w}).aliases == {"b": "a"}
    assert restored["a"] is restored["b"]
    assert restored["a"].tolist() == [1, 1, 1]


def test_traced_and_deleted_arrays_are_refused_by_their_path() -> None:
    def traced(x: Any) -> Any:
        with pytest.raises(UnsupportedLeafError, match="'a/0' is traced"):
            tree.flatten({"a": [x]})
        return x

    gone = jax.numpy.zeros(2)
    gone.delete()

    jax.jit(traced)(jax.numpy.zeros(2))
    with pytest.raises(UnsupportedLeafError, match="'a' is a deleted jax array"):
        tree.flatten({"a": gone})


def test_optimizer_states_of_named_tuples_keep_their_types() -> None:
    adam = collections.namedtuple("ScaleByAdamState", "count mu nu")
    empty = collections.namedtuple("EmptyState", "")
    state = (adam(jax.numpy.int32(3), {"w": jax.numpy.ones(2)}, {"w": jax.numpy.ones(2)}), empty())
    into = (adam(jax.numpy.int32(0), {"w": jax.numpy.zeros(2)}, {"w": jax.numpy.zeros(2)}), empty())

    restored = states.restored(state, into)

    assert type(restored[0]) is adam
    assert type(restored[1]) is empty
    assert restored[0].count.item() == 3
    assert restored[0].mu["w"].tolist() == [1, 1]


def test_numpy_and_jax_do_not_share_memory_after_a_restore() -> None:
    source, skeleton = states.saved({"a": np.zeros(1000, np.float32)})
    into = {"a": jax.numpy.ones(1000), "b": None}

    state, _ = states.restoring.restore(source, skeleton, into={"a": into["a"]})
    found, _ = states.restoring.restore(source, skeleton)
    found["a"][:] = 5

    assert state["a"].sum() == 0


def test_array_of_a_dtype_that_jax_has_not_stays_a_numpy_array() -> None:
    array = np.zeros(2, ml_dtypes.float6_e2m3fn)

    assert arrays.make("jax", array) is array
    assert arrays.describe(jax.ShapeDtypeStruct((2,), np.float32)) == TensorSpec("float32", (2,))
