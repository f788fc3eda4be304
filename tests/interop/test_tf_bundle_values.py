"""Every dtype, strings and odd states between ckptmgr and TensorFlow, without Keras."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import states
from frameworks import tf
from tf_programs import flat

import ckptmgr
from ckptmgr import CheckpointManager

DTYPES = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]
DTYPES += ["complex64", "complex128", "bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2fnuz"]
SUBBYTE = ["int2", "uint2", "int4", "uint4", "float4_e2m1fn"]
DTYPES += ["float8_e4m3b11fnuz", *SUBBYTE]
NO_VARIABLES = {"float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz"}  # TensorFlow has no kernels for them
VARIABLES = sorted({*DTYPES} - NO_VARIABLES)
STRINGS = np.array([[b"", b"a\0"], ["層".encode(), bytes(range(256)) * 200]], object)


def numpy_of(dtype: str, shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    array = states.bits(dtype, shape, seed)
    return np.random.default_rng(seed).integers(0, 2, shape).astype(array.dtype) if dtype in SUBBYTE else array


def variables(dtype: str, seed: int) -> dict[str, Any]:
    shapes = {"matrix": (3, 5), "scalar": (), "empty": (0, 3)}
    return {name: tf.Variable(numpy_of(dtype, shape, seed)) for name, shape in shapes.items()}


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "ck")


@pytest.mark.parametrize("dtype", VARIABLES)
def test_variables_of_every_dtype_come_from_tensorflow(prefix: str, dtype: str) -> None:
    given = variables(dtype, 1)

    tf.train.Checkpoint(**given).write(prefix)

    found = ckptmgr.load(prefix)
    assert {array.dtype for array in found.values()} == {states.dtype(dtype)}
    assert flat(found) == {path: flat(given)[path] for path in flat(found)}
    assert len(found) == 3


@pytest.mark.parametrize("dtype", VARIABLES)
def test_variables_of_every_dtype_are_restored_by_tensorflow(prefix: str, dtype: str) -> None:
    given, fresh = variables(dtype, 1), variables(dtype, 2)

    ckptmgr.save(prefix, given, backend="tf_bundle")
    tf.train.Checkpoint(**fresh).restore(prefix).assert_consumed()

    assert flat(fresh) == flat(given)


@pytest.mark.parametrize("dtype", sorted(NO_VARIABLES))
def test_tensors_that_no_variable_can_hold_go_both_ways(prefix: str, dtype: str) -> None:
    given = numpy_of(dtype, (3, 5))

    tf.raw_ops.SaveV2(prefix=f"{prefix}-theirs", tensor_names=["w"], shape_and_slices=[""], tensors=[tf.constant(given)])
    ckptmgr.save(prefix, {"w": given}, backend="tf_bundle")

    assert flat(ckptmgr.load(f"{prefix}-theirs")) == flat({"w": given})
    key = "w/.ATTRIBUTES/VARIABLE_VALUE"
    (read,) = tf.raw_ops.RestoreV2(prefix=prefix, tensor_names=[key], shape_and_slices=[""], dtypes=[tf.as_dtype(dtype)])
    assert read.numpy().tobytes() == given.tobytes()


@pytest.mark.parametrize(("dtype", "plain"), [("qint8", "int8"), ("quint8", "uint8"), ("qint16", "int16"), ("qint32", "int32")])
def test_quantized_tensors_come_as_the_integers_that_tensorflow_gives(prefix: str, dtype: str, plain: str) -> None:
    given = numpy_of(plain, (3, 5))
    quantized = tf.bitcast(tf.constant(given), getattr(tf, dtype))

    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=["w"], shape_and_slices=[""], tensors=[quantized])

    assert flat(ckptmgr.load(prefix)) == flat({"w": given}) == flat({"w": tf.train.load_variable(prefix, "w")})


@pytest.mark.parametrize("strings", [STRINGS, STRINGS[0, 1:2].reshape(()), STRINGS[:0]], ids=["matrix", "scalar", "empty"])
def test_string_variables_go_both_ways(prefix: str, strings: np.ndarray) -> None:
    given = tf.Variable(tf.constant(strings.tolist(), tf.string, strings.shape))
    fresh = tf.Variable(tf.fill(strings.shape, "?"))

    tf.train.Checkpoint(s=given).write(f"{prefix}-theirs")
    found = ckptmgr.load(f"{prefix}-theirs")
    ckptmgr.save(prefix, found, backend="tf_bundle")
    tf.train.Checkpoint(s=fresh).restore(prefix).assert_consumed()

    assert found["s"].tolist() == strings.tolist()
    assert flat({"s": fresh}) == flat({"s": strings})


def test_numpys_own_strings_become_tensorflows(prefix: str) -> None:
    fresh = {"bytes": tf.Variable(["", ""]), "text": tf.Variable(["", ""])}

    ckptmgr.save(prefix, {"bytes": np.array([b"a", b"bc"], object), "text": np.array(["ä", "層"], object)}, backend="tf_bundle")
    tf.train.Checkpoint(**fresh).restore(prefix).assert_consumed()

    assert fresh["bytes"].numpy().tolist() == [b"a", b"bc"]
    assert [value.decode() for value in fresh["text"].numpy()] == ["ä", "層"]


def test_plain_values_of_a_state_are_restored_into_variables(prefix: str) -> None:
    state = {"step": 7, "lr": 0.1, "name": "layer 層", "flag": True, "z": 1 + 2j, "half": np.float16(0.5), "raw": b"\0\xff"}
    kinds = [tf.int64, tf.float32, tf.string, tf.bool, tf.complex128, tf.float16, tf.string]
    fresh = {name: tf.Variable(tf.zeros((), kind) if kind != tf.string else "") for name, kind in zip(state, kinds, strict=True)}

    ckptmgr.save(prefix, state, backend="tf_bundle")
    tf.train.Checkpoint(**fresh).restore(prefix).assert_consumed()

    values = {name: variable.numpy() for name, variable in fresh.items()}
    assert values == {**state, "lr": np.float32(0.1), "name": "layer 層".encode()}


def test_plain_values_come_back_to_ckptmgr_as_what_they_were(prefix: str) -> None:
    state = {
        "step": 7,
        "lr": 0.1,
        "name": "層",
        "none": None,
        "big": 10**30,
        "w": np.zeros(2, np.float32),
        "list": [1, (2.5, "x")],
    }

    ckptmgr.save(prefix, state, backend="tf_bundle")

    assert states.same(ckptmgr.load(prefix), state)


def test_what_is_added_for_tensorflow_is_no_tensor_of_ours(prefix: str) -> None:
    ckptmgr.save(prefix, {"v": np.float32([1]), "step": 7}, backend="tf_bundle")

    keys = [name.partition("/")[0] for name, _ in tf.train.list_variables(prefix)]
    with ckptmgr.open_checkpoint(prefix) as checkpoint:
        assert list(checkpoint.specs) == ["v"]
    assert keys == ["_CHECKPOINTABLE_OBJECT_GRAPH", "_CKPTMGR_METADATA", "save_counter", "step", "v"]


def test_values_that_no_dtype_holds_are_left_out_for_tensorflow(prefix: str) -> None:
    ckptmgr.save(prefix, {"v": np.float32([1]), "none": None, "big": 10**30}, backend="tf_bundle")

    keys = [name.partition("/")[0] for name, _ in tf.train.list_variables(prefix)]
    assert keys == ["_CHECKPOINTABLE_OBJECT_GRAPH", "_CKPTMGR_METADATA", "save_counter", "v"]


def test_lists_dicts_and_tuples_nest_as_tensorflows_own(prefix: str) -> None:
    state = {"a": [{"b": (np.int32(1).reshape(()), [np.float32([2])])}, np.zeros((0, 3))], "c": {}, "1": {"0": np.int8([3])}}
    fresh = {
        "a": [{"b": (tf.Variable(0), [tf.Variable([0.0])])}, tf.Variable(np.ones((0, 3)))],
        "c": {},
        "1": {"0": tf.Variable(np.int8([0]))},
    }

    ckptmgr.save(prefix, state, backend="tf_bundle")
    tf.train.Checkpoint(**fresh).restore(prefix).assert_consumed()

    assert flat(fresh) == flat(state)


def test_odd_names_are_tensorflows_too(prefix: str) -> None:
    # Not ".ATTRIBUTES": TensorFlow itself looks for such a variable under another key than it wrote.
    names = ["a/b", "x.y", ".S", "..", ".", "層", " ", "/", ".OPTIMIZER_SLOT", "a/.OPTIMIZER_SLOT/b/c", "a\nb", "-1", ""]
    state = {"d": {name: np.int64([number]) for number, name in enumerate(names)}}
    fresh = {name: tf.Variable(np.int64([-1])) for name in names}

    ckptmgr.save(prefix, state, backend="tf_bundle")
    tf.train.Checkpoint(d=fresh).restore(prefix).assert_consumed()

    assert flat({"d": fresh}) == flat(state)
    assert flat(ckptmgr.load(prefix)) == flat(state)


def test_keys_of_odd_names_are_those_that_tensorflow_makes(prefix: str, tmp_path: Path) -> None:
    state = {"a/b": {"x.y": [tf.Variable(1)]}, ".S": tf.Variable(2), "..": {"": tf.Variable(3)}}

    theirs = tf.train.Checkpoint(d=state).write(str(tmp_path / "theirs"))
    ckptmgr.save(prefix, {"d": state}, backend="tf_bundle")

    ours = {name for name, _ in tf.train.list_variables(prefix) if not name.startswith(("_CKPTMGR", "save_counter"))}
    assert ours == {name for name, _ in tf.train.list_variables(theirs)}


def test_long_list_of_tensors_in_many_files(prefix: str, tmp_path: Path) -> None:
    state = {"layers": [{"w": np.full((4, 25), number, np.float32), "n": np.int16(number).reshape(())} for number in range(200)]}
    fresh = [{"w": tf.Variable(tf.zeros((4, 25))), "n": tf.Variable(np.int16(-1))} for _ in range(200)]

    ckptmgr.save(prefix, state, backend="tf_bundle", max_file_nbytes=8_000)
    tf.train.Checkpoint(layers=fresh).restore(prefix).assert_consumed()

    assert len([*tmp_path.glob("ck.data-*-of-*")]) > 9
    assert flat({"layers": fresh}) == flat(state)


def test_tensor_above_the_size_of_a_file_is_whole_for_tensorflow(tmp_path: Path) -> None:
    state = {"big": np.arange(6000, dtype=np.float32).reshape(60, 100), "small": np.float32([1])}
    fresh = {"big": tf.Variable(tf.zeros((60, 100))), "small": tf.Variable([0.0])}
    manager = CheckpointManager(tmp_path / "run", backend="tf_bundle", max_file_nbytes=5_000)

    manager.save(1, state)
    tf.train.Checkpoint(**fresh).restore(manager.path(1) + "/model").assert_consumed()

    assert flat(fresh) == flat(state)
    assert flat(manager.restore().state) == flat(state)


def test_tied_arrays_are_restored_into_one_variable_and_into_two(prefix: str) -> None:
    w = np.float32([1, 2])
    shared, one, other = (tf.Variable([0.0, 0.0]) for _ in range(3))

    ckptmgr.save(prefix, {"a": w, "b": {"c": w}}, backend="tf_bundle")
    tf.train.Checkpoint(a=shared, b={"c": shared}).restore(prefix).assert_consumed()
    tf.train.Checkpoint(a=one, b={"c": other}).restore(prefix).assert_consumed()

    assert [variable.numpy().tolist() for variable in (shared, one, other)] == [[1, 2]] * 3
    assert Path(f"{prefix}.data-00000-of-00001").read_bytes().count(w.tobytes()) == 1


def test_prefix_may_hold_dots_blanks_and_letters_of_any_script(tmp_path: Path) -> None:
    prefix = str(tmp_path / "my run.層" / "cp-0001.ckpt-5")
    variable = tf.Variable([0.0])

    ckptmgr.save(prefix, {"v": np.float32([3])}, backend="tf_bundle")
    tf.train.Checkpoint(v=variable).restore(prefix).assert_consumed()

    assert variable.numpy().tolist() == [3]
