"""Checkpoints that TensorFlow, tf_keras and Keras 3 write, restored without them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import tf
from tf_programs import PROGRAMS, flat, template

import ckptmgr
from ckptmgr_tf_bundle import TFBundleBackend


@pytest.fixture(params=PROGRAMS)
def make(request: pytest.FixtureRequest) -> Any:
    return PROGRAMS[request.param]


def counted(state: Any, prefix: str) -> Any:
    """With the counter that `tf.train.Checkpoint.save` adds, where there is one."""
    is_counted = tf.train.load_checkpoint(prefix).has_tensor("save_counter/.ATTRIBUTES/VARIABLE_VALUE")
    return {**state, **({"save_counter": np.zeros((), np.int64)} if is_counted else {})}


def test_every_variable_comes_back_where_it_stands_in_the_program(make: Any, tmp_path: Path) -> None:
    program = make(1)
    prefix = program.write(str(tmp_path / "cp.ckpt"))

    found, expected = flat(ckptmgr.load(prefix)), flat(program.state)

    assert {path: found.get(path) for path in expected} == expected


def test_arrays_of_a_template_are_filled_strictly(make: Any, tmp_path: Path) -> None:
    program = make(1)
    prefix = program.write(str(tmp_path / "cp.ckpt"))

    found = ckptmgr.load(prefix, into=counted(template(program.state), prefix))

    found.pop("save_counter", None)
    assert flat(found) == flat(program.state)


def test_live_variables_of_another_program_are_filled_and_train_on_alike(make: Any, tmp_path: Path) -> None:
    program, fresh = make(1), make(2)
    prefix = program.write(str(tmp_path / "cp.ckpt"))

    ckptmgr.load(prefix, into=counted(fresh.state, prefix))
    assert flat(fresh.state) == flat(program.state)
    program.train()
    fresh.train()

    assert flat(fresh.state) == flat(program.state)


def test_every_key_has_the_bits_that_tensorflow_reads(make: Any, tmp_path: Path) -> None:
    prefix = make(1).write(str(tmp_path / "cp.ckpt"))
    reader = tf.train.load_checkpoint(prefix)

    with ckptmgr.open_checkpoint(prefix, backend=TFBundleBackend(names="keys")) as checkpoint:
        found = {name: checkpoint.read(name) for name in checkpoint.specs}

    assert flat(found) == flat({key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()})


def test_prefix_index_data_file_and_folder_lead_to_the_same_checkpoint(tmp_path: Path) -> None:
    prefix = PROGRAMS["sequential"](1).write(str(tmp_path / "cp.ckpt"))
    expected = flat(ckptmgr.load(prefix))

    ways = [f"{prefix}.index", f"{prefix}.data-00000-of-00001", str(tmp_path), str(tmp_path / "checkpoint")]

    assert [flat(ckptmgr.load(way)) == expected for way in ways] == [True] * 4


def test_shared_layers_of_keras_3_are_one_array_in_both_places(tmp_path: Path) -> None:
    prefix = PROGRAMS["keras3_sequential"](1).write(str(tmp_path / "ck"))

    state = ckptmgr.load(prefix)

    weights = state["optimizer"]["_trainable_variables"]
    assert state["model"]["_functional"]["_operations"]["1"]["_kernel"] is weights["0"]


def test_tied_variable_is_one_array_in_both_places(tmp_path: Path) -> None:
    prefix = PROGRAMS["nested"](1).write(str(tmp_path / "ck"))

    net = ckptmgr.load(prefix)["net"]

    assert net["tied"] is net["blocks"]["0"]["w"]
