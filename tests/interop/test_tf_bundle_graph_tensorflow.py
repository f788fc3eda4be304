"""Object graphs and the real TensorFlow: it restores from ours, and ours are like its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import tf, tf_keras
from object_graphs import ORIGIN, VALUE, edges

from ckptmgr.backend import crc32c
from ckptmgr_tf_bundle import literal, table
from ckptmgr_tf_bundle.building import build, carried
from ckptmgr_tf_bundle.dtypes import CODES
from ckptmgr_tf_bundle.entry import build_entry, build_header
from ckptmgr_tf_bundle.graph import Names, from_graph
from ckptmgr_tf_bundle.keys import GRAPH_KEY

COUNTER = "save_counter"
State = Mapping[tuple[str, ...], np.ndarray]


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return str(tmp_path / "cp")


def write(prefix: str, state: State, *, with_counter: bool = True) -> None:
    """The state as a bundle of one data file, under the graph that is built for it."""
    arrays = {"/".join(path): array for path, array in state.items()}
    paths = {"/".join(path): path for path in state}
    built = build(paths, save_counter=COUNTER if with_counter else None)
    arrays |= {COUNTER: np.int64(0)[...]} if COUNTER in built.keys and COUNTER not in arrays else {}
    stored = {built.keys[name]: raw(array) for name, array in arrays.items()} | {GRAPH_KEY: literal.string([built.graph])}
    entries = [(b"", build_header(1))]
    data = b""
    for key in sorted(stored, key=str.encode):
        dtype, shape, content, crc = stored[key]
        entries.append((key.encode(), build_entry(dtype, shape, 0, len(data), len(content), crc)))
        data += content
    Path(prefix + ".data-00000-of-00001").write_bytes(data)
    Path(prefix + ".index").write_bytes(table.encode(entries))


def raw(array: np.ndarray) -> literal.Literal:
    return literal.Literal(CODES[array.dtype.name], array.shape, array.tobytes(), crc32c(array.tobytes()))


def theirs(prefix: str) -> tuple[bytes, list[str]]:
    """The object graph and the other keys of what TensorFlow wrote."""
    reader = tf.train.load_checkpoint(prefix)
    return bytes(reader.get_tensor(GRAPH_KEY)), sorted(set(reader.get_variable_to_shape_map()) - {GRAPH_KEY}, key=str.encode)


def names_of(prefix: str) -> Names:
    return from_graph(*theirs(prefix), ORIGIN)


def numbers(count: int) -> np.ndarray:
    return np.arange(1, count + 1, dtype="float32")


def variable(count: int) -> Any:
    return tf.Variable(tf.zeros(count))


def nested() -> Any:
    return tf.train.Checkpoint(net={"layers": [{"w": variable(2)}, {"w": variable(3)}]}, step=tf.Variable(0, dtype=tf.int64))


NESTED: State = {
    ("net", "layers", "0", "w"): numbers(2),
    ("net", "layers", "1", "w"): numbers(3),
    ("step",): np.int64(7)[...],
}


def test_nested_state_is_restored_with_nothing_left_over(prefix: str) -> None:
    write(prefix, NESTED)
    checkpoint = nested()

    checkpoint.restore(prefix).assert_consumed()

    assert checkpoint.net["layers"][1]["w"].numpy().tolist() == [1, 2, 3]
    assert checkpoint.step.numpy() == 7


def test_nested_state_is_read_without_a_save_counter(prefix: str) -> None:
    write(prefix, NESTED, with_counter=False)
    checkpoint = nested()

    checkpoint.read(prefix).assert_consumed()

    assert checkpoint.net["layers"][0]["w"].numpy().tolist() == [1, 2]


def test_save_counter_of_the_state_is_tensorflows_own(prefix: str) -> None:
    write(prefix, {**NESTED, (COUNTER,): np.int64(41)[...]})
    checkpoint = nested()

    checkpoint.restore(prefix).assert_consumed()

    assert checkpoint.save(prefix).endswith("-42")


def test_slots_of_a_legacy_optimizer_are_restored(prefix: str) -> None:
    optimizer = tf_keras.optimizers.legacy.Adam(0.5)
    weight = variable(2)
    optimizer.apply_gradients([(tf.ones(2), weight)])
    state = {("optimizer", name): np.float32(0.25)[...] for name in ("beta_1", "beta_2", "decay", "learning_rate")}
    state |= {("optimizer", "iter"): np.int64(9)[...], ("w",): numbers(2)}
    state |= {("w/.OPTIMIZER_SLOT/optimizer/m",): numbers(2) + 10, ("w/.OPTIMIZER_SLOT/optimizer/v",): numbers(2) + 20}
    write(prefix, state)

    tf.train.Checkpoint(w=weight, optimizer=optimizer).restore(prefix).assert_consumed()

    assert optimizer.get_slot(weight, "m").numpy().tolist() == [11, 12]
    assert optimizer.get_slot(weight, "v").numpy().tolist() == [21, 22]
    assert optimizer.iterations.numpy() == 9


def test_slots_are_restored_when_the_optimizer_makes_them_later(prefix: str) -> None:
    write(prefix, {("w",): numbers(2), ("w/.OPTIMIZER_SLOT/optimizer/momentum",): numbers(2) + 10})
    optimizer = tf_keras.optimizers.legacy.SGD(0.0, momentum=1.0)
    weight = variable(2)

    status = tf.train.Checkpoint(w=weight, optimizer=optimizer).restore(prefix)
    optimizer.apply_gradients([(tf.zeros(2), weight)])

    status.expect_partial()  # its hyperparameters are not there
    assert optimizer.get_slot(weight, "momentum").numpy().tolist() == [11, 12]


def test_tensors_of_two_names_are_restored_into_one_variable_and_into_two(prefix: str) -> None:
    write(prefix, {("a", "w"): numbers(2), ("b", "w"): numbers(2)})
    tied, first, second = variable(2), variable(2), variable(2)

    tf.train.Checkpoint(a={"w": tied}, b={"w": tied}).restore(prefix).assert_existing_objects_matched()
    tf.train.Checkpoint(a={"w": first}, b={"w": second}).restore(prefix).assert_consumed()

    assert [each.numpy().tolist() for each in (tied, first, second)] == [[1, 2]] * 3


ODD = ["a/b", "x.y", ".S", "..", "é", "a b", ".OPTIMIZER_SLOT", "", "0"]


def test_odd_names_are_restored(prefix: str) -> None:
    write(prefix, {("d", name): numbers(count) for count, name in enumerate(ODD, 1)})
    checkpoint = tf.train.Checkpoint(d={name: variable(count) for count, name in enumerate(ODD, 1)})

    checkpoint.restore(prefix).assert_consumed()

    assert [checkpoint.d[name].numpy()[-1] for name in ODD] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_keys_of_odd_names_are_those_of_tensorflow(prefix: str) -> None:
    tf.train.Checkpoint(d={name: variable(1) for name in ODD}).write(prefix)

    assert (
        sorted(build({name: ("d", name) for name in ODD}, save_counter=None).keys.values(), key=str.encode) == theirs(prefix)[1]
    )


def test_objects_are_numbered_as_tensorflow_numbers_them(prefix: str) -> None:
    nested().write(prefix)
    names = names_of(prefix)

    built = build({name: names.paths[name] for name in names.keys}, save_counter=None)

    assert built.keys == names.keys
    assert edges(built.graph) == edges(theirs(prefix)[0])


def test_a_variable_that_is_the_root_has_the_key_that_tensorflow_gives_it(prefix: str) -> None:
    tf.train.Checkpoint(root=tf.Variable(1.0)).write(prefix)

    assert theirs(prefix)[1] == list(build({"": ()}, save_counter=None).keys.values()) == ["/.ATTRIBUTES/VARIABLE_VALUE"]
    assert names_of(prefix).keys == {"": "/.ATTRIBUTES/VARIABLE_VALUE"}


def test_a_state_that_is_one_tensor_is_read_into_a_variable(prefix: str) -> None:
    write(prefix, {(): np.float32(2)[...]}, with_counter=False)
    root = tf.Variable(1.0)  # not 0, which TensorFlow takes for no root at all

    tf.train.Checkpoint(root=root).read(prefix).assert_consumed()

    assert root.numpy() == 2


def test_slots_of_a_legacy_optimizer_are_named_by_the_graph(prefix: str) -> None:
    optimizer = tf_keras.optimizers.legacy.Adam()
    weights = {"a/b": variable(2)}
    optimizer.apply_gradients([(tf.ones(2), weights["a/b"])])
    tf.train.Checkpoint(d=weights, opt=optimizer).write(prefix)

    names = names_of(prefix)

    assert names.keys["d/a/b/.OPTIMIZER_SLOT/opt/m"] == "d/a.Sb/.OPTIMIZER_SLOT/opt/m" + VALUE
    assert names.paths["d/a/b/.OPTIMIZER_SLOT/opt/m"] == ("d", "a/b/.OPTIMIZER_SLOT/opt/m")
    assert carried(theirs(prefix)[0], names.keys, names.aliases) == names.keys


def test_a_lookup_table_is_named_and_carried(prefix: str) -> None:
    lookup = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, default_value=-1)
    lookup.insert(tf.constant([1], tf.int64), tf.constant([2], tf.int64))
    tf.train.Checkpoint(vocab=lookup, w=variable(1)).write(prefix)

    names = names_of(prefix)

    assert names.paths["vocab/.ATTRIBUTES/table-keys"] == ("vocab", ".ATTRIBUTES/table-keys")
    assert carried(theirs(prefix)[0], names.keys) == names.keys
