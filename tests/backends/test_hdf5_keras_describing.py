"""What is told of a model of Keras in a few lines."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import ckptmgr
from ckptmgr.cli.app import app
from ckptmgr_hdf5 import HDF5Backend
from ckptmgr_hdf5.keras_describing import describe

GOLDEN = Path(__file__).parents[1] / "golden" / "keras"


def described(name: str) -> list[tuple[str, str]]:
    with ckptmgr.open_checkpoint(GOLDEN / name) as opened:
        return [*HDF5Backend().describe(opened.metadata)]


def test_a_whole_model_is_told_with_layers_training_and_optimizer() -> None:
    assert described("k2_tutorial.h5") == [
        ("file", "legacy-model by Keras 2.21.0 on tensorflow"),
        ("model", "tutorial (Sequential)"),
        ("layer", "dense_input (InputLayer)"),
        ("layer", "dense (Dense)"),
        ("layer", "dropout (Dropout)"),
        ("layer", "dense_1 (Dense)"),
        ("loss", "sparse_categorical_crossentropy"),
        ("metrics", "accuracy"),
        ("optimizer", "Adam ema_momentum=0.99 learning_rate=0.001 beta_1=0.9 beta_2=0.999 epsilon=1e-07"),
    ]


@pytest.mark.parametrize("name", ["k3_functional.h5", "k3_functional.keras"])
def test_layers_of_nested_models_and_of_own_classes_are_told(name: str) -> None:
    layers = [text for title, text in described(name) if title == "layer"]

    assert "inner/inner_bn (BatchNormalization)" in layers
    assert "ss (ckptfix>ScaleShift)" in layers


@pytest.mark.parametrize(("name", "is_told"), [("k3_lambda.keras", True), ("k3_lambda.h5", True), ("k3_tutorial.keras", False)])
def test_a_config_that_could_run_code_is_told(name: str, is_told: bool) -> None:
    assert ("unsafe" in dict(described(name))) is is_told


def test_weights_alone_are_told_by_their_kind() -> None:
    assert described("k3_tutorial.weights.h5") == [("file", "weights")]


@pytest.mark.parametrize(
    "config",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        '"text"',
        json.dumps({"class_name": [1], "config": {"name": 3, "layers": [1, None, {}, [[]]]}}),
    ],
)
@pytest.mark.parametrize("key", ["config", "model_config", "training_config"])
def test_odd_configs_are_no_error(key: str, config: str) -> None:
    titles = {title for title, _ in describe({key: config, "keras": ["?"]})}

    assert titles <= {"model", "unsafe"}


@pytest.mark.parametrize("compiled", [1, [], {"optimizer": [1], "loss": 3}, {"optimizer": {"config": []}, "metrics": [[None]]}])
def test_odd_configs_of_training_are_no_error(compiled: Any) -> None:
    told = dict(describe({"config": json.dumps({"class_name": "Sequential", "compile_config": compiled})}))

    assert told.get("optimizer") in (None, "?")


def test_metadata_of_others_tells_nothing() -> None:
    assert describe({"note": "mine"}) == []


def test_show_cuts_long_metadata_and_json_has_all_of_it() -> None:
    path = str(GOLDEN / "k2_tutorial.h5")
    with ckptmgr.open_checkpoint(path) as opened:
        config = opened.metadata["model_config"]

    text, whole = (CliRunner().invoke(app, ["show", path, *options]).output for options in ([], ["--json"]))

    line = next(line for line in text.splitlines() if "model_config: " in line)
    assert line.endswith("... (1497 characters; --json has all)")
    assert len(line) < 280
    assert json.loads(whole)["metadata"]["model_config"] == config
