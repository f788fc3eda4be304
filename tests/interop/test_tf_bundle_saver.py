"""TensorFlow 1: checkpoints by the names of variables, partitioned variables, and the format before this one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import Lazy, tf

import ckptmgr
from ckptmgr import transfer
from ckptmgr.backend import Box, Contents, Folder, Part, tensor_spec
from ckptmgr.errors import BackendNotFoundError
from ckptmgr.memory import MemorySource
from ckptmgr.storage import PosixStore
from ckptmgr_tf_bundle import TFBundleBackend

v1 = Lazy("tensorflow.compat.v1")
EMB = np.arange(20, dtype=np.float32).reshape(10, 2)
W = np.array([1.5, -2], np.float32)
STEP = np.array(100)
STATE = {"scope": {"emb": EMB}, "w": W, "global_step": STEP}
BY_NAME = TFBundleBackend(form="name")


@pytest.fixture
def session() -> Any:
    """Variables named ``scope/emb`` (partitioned in three), ``w`` and ``global_step``, all zero."""
    with tf.Graph().as_default():
        with v1.variable_scope("scope", partitioner=v1.fixed_size_partitioner(3)):
            v1.get_variable("emb", shape=[10, 2], use_resource=False, initializer=v1.zeros_initializer())
        v1.get_variable("w", shape=[2], use_resource=False, initializer=v1.zeros_initializer())
        v1.get_variable("global_step", initializer=np.int64(0), use_resource=False)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            yield session


def assign(session: Any) -> None:
    values = {"w:0": W, "global_step:0": STEP}
    values |= {f"scope/emb/part_{part}:0": EMB[start:stop] for part, (start, stop) in enumerate([(0, 4), (4, 7), (7, 10)])}
    for variable in v1.global_variables():
        session.run(variable.assign(values[variable.name]))


def values(session: Any) -> dict[str, list[Any]]:
    parts = [session.run(variable) for variable in v1.global_variables() if variable.name.startswith("scope/emb")]
    return {"emb": np.concatenate(parts).tolist(), **{name: session.run(f"{name}:0").tolist() for name in ("w", "global_step")}}


EXPECTED = {"emb": EMB.tolist(), "w": [1.5, -2.0], "global_step": 100}


@pytest.mark.parametrize("sharded", [False, True])
def test_partitioned_variable_is_one_tensor_in_what_saver_writes(session: Any, tmp_path: Path, sharded: bool) -> None:
    assign(session)
    prefix = v1.train.Saver(sharded=sharded).save(session, str(tmp_path / "model.ckpt"), global_step=100)

    state = ckptmgr.load(prefix)

    assert state["scope"]["emb"].dtype == np.float32
    assert {
        "emb": state["scope"]["emb"].tolist(),
        "w": state["w"].tolist(),
        "global_step": state["global_step"].item(),
    } == EXPECTED


def test_rows_of_a_partitioned_variable_are_read_across_its_slices(session: Any, tmp_path: Path) -> None:
    assign(session)
    prefix = v1.train.Saver().save(session, str(tmp_path / "model.ckpt"))

    with ckptmgr.open_checkpoint(prefix) as checkpoint:
        rows = checkpoint.read("scope/emb", Box((3, 1), (8, 2)))

    assert rows.tolist() == [[7], [9], [11], [13], [15]]


def test_saver_restores_what_we_wrote_by_name_into_partitions(session: Any, tmp_path: Path) -> None:
    prefix = str(tmp_path / "model.ckpt")

    ckptmgr.save(prefix, STATE, backend=BY_NAME)
    v1.train.Saver().restore(session, prefix)

    assert values(session) == EXPECTED


def test_what_saver_wrote_is_loaded_saved_and_restored_by_it(session: Any, tmp_path: Path) -> None:
    assign(session)
    theirs, ours = v1.train.Saver().save(session, str(tmp_path / "theirs")), str(tmp_path / "ours")
    session.run(v1.global_variables_initializer())

    ckptmgr.save(ours, ckptmgr.load(theirs), backend=BY_NAME)
    v1.train.Saver().restore(session, ours)

    assert values(session) == EXPECTED


def test_saver_fills_its_partitions_from_slices_that_were_cut_elsewhere(session: Any, tmp_path: Path) -> None:
    arrays = {"scope/emb": EMB, "w": W, "global_step": STEP}
    specs = {name: tensor_spec(array.dtype, array.shape) for name, array in arrays.items()}
    cuts = [Box((0, 0), (5, 2)), Box((5, 0), (10, 1)), Box((5, 1), (10, 2))]
    slices = [Part("scope/emb", specs["scope/emb"], box) for box in cuts]
    files = ((slices[0], Part("w", specs["w"])), (slices[2], slices[1], Part("global_step", specs["global_step"])))
    layout = BY_NAME.layout(Contents(files), stem="model.ckpt", align=1)

    transfer.write(Folder(PosixStore(tmp_path)), layout, MemorySource(arrays, specs))
    v1.train.Saver().restore(session, str(tmp_path / "model.ckpt"))

    assert values(session) == EXPECTED
    assert tf.train.load_variable(str(tmp_path / "model.ckpt"), "scope/emb").tolist() == EMB.tolist()


def test_step_of_a_manager_is_restored_by_saver(session: Any, tmp_path: Path) -> None:
    manager = ckptmgr.CheckpointManager(tmp_path / "run", backend=BY_NAME)

    manager.save(100, STATE)
    v1.train.Saver().restore(session, manager.path(100) + "/model")

    assert values(session) == EXPECTED


def test_names_of_the_name_form_are_variables_names_and_nothing_else(tmp_path: Path) -> None:
    prefix = str(tmp_path / "model.ckpt")

    ckptmgr.save(prefix, {"scope/emb": EMB, "w": W}, backend=BY_NAME)

    assert tf.train.list_variables(prefix) == [("scope/emb", [10, 2]), ("w", [2])]
    assert tf.train.load_variable(prefix, "scope/emb").tolist() == EMB.tolist()


def test_plain_values_are_variables_in_the_name_form_too(session: Any, tmp_path: Path) -> None:
    prefix = str(tmp_path / "model.ckpt")

    ckptmgr.save(prefix, STATE | {"global_step": 100}, backend=BY_NAME)
    v1.train.Saver().restore(session, prefix)

    assert values(session) == EXPECTED


def test_checkpoint_matches_the_name_form_by_names_of_variables(tmp_path: Path) -> None:
    prefix = str(tmp_path / "model.ckpt")
    variable = tf.Variable([0.0, 0.0], name="w")

    ckptmgr.save(prefix, {"w": W}, backend=BY_NAME)
    tf.train.Checkpoint(anything=variable).restore(prefix).assert_existing_objects_matched()

    assert variable.numpy().tolist() == [1.5, -2.0]


def test_file_of_the_first_format_is_recognized_and_refused(session: Any, tmp_path: Path) -> None:
    prefix = v1.train.Saver(write_version=v1.train.SaverDef.V1).save(session, str(tmp_path / "model.ckpt"))
    assert (tmp_path / "model.ckpt").is_file()

    for backend in (None, "tf_bundle"):
        with pytest.raises(BackendNotFoundError, match=r"model\.ckpt.*first format.*tf\.compat\.v1\.train\.Saver"):
            ckptmgr.load(prefix, backend=backend)
