"""Files that ckptmgr writes, loaded by Keras 3 and tf_keras: as good as their own, down to the next step of training."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from frameworks import keras, tf_keras
from keras_forms import GOLDEN, golden, planned, rewrite, saved, source, write
from keras_golden_models import forget, load, optimizer_variables, predictions, train, variables

from ckptmgr_hdf5.keras_writing import Form

LIBRARIES = {"k2": tf_keras, "k3": keras}
NAMES = ["k2_tutorial", "k2_functional", "k3_tutorial", "k3_functional"]
SOURCES = [".h5", ".keras"]


@pytest.fixture(autouse=True)
def _cleared() -> Iterator[None]:
    yield
    for lib in LIBRARIES.values():
        lib.backend.clear_session()


def library(name: str) -> Any:
    return LIBRARIES[name[:2]]


def check_equal(name: str, ours: Any, theirs: Any) -> None:
    """Equal in predictions and all variables, now and after one more step of training."""
    assert (predictions(ours, name) == predictions(theirs, name)).all()
    assert variables(ours) == variables(theirs)
    losses = []
    for model in (ours, theirs):
        library(name).utils.set_random_seed(3)
        losses.append(train(model, name))
    assert losses[0] == losses[1]
    assert variables(ours) == variables(theirs)


@pytest.mark.parametrize("form", ["keras", "keras-legacy"])
@pytest.mark.parametrize("suffix", SOURCES)
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_model_goes_on_as_the_one_that_keras_saved(tmp_path: Path, name: str, suffix: str, form: Form) -> None:
    path = rewrite(tmp_path, golden(name + suffix), form)

    ours, theirs = (load(library(name), each) for each in (path, GOLDEN / f"{name}{path.suffix}"))

    if (name[:2], form) == ("k3", "keras-legacy"):
        for model in (ours, theirs):  # Keras 3 cannot go on with an optimizer that it loaded from its own legacy layout
            model.compile(keras.optimizers.Adam(), model.loss, run_eagerly=True)
    check_equal(name, ours, theirs)


@pytest.mark.parametrize("suffix", SOURCES)
@pytest.mark.parametrize("name", NAMES)
def test_weights_and_optimizer_load_into_a_model_of_the_same_kind(tmp_path: Path, name: str, suffix: str) -> None:
    path = rewrite(tmp_path, golden(name + suffix), "keras-weights")
    theirs, ours = (load(library(name), GOLDEN / f"{name}.keras") for _ in range(2))
    forget(ours)

    ours.load_weights(path)

    check_equal(name, ours, theirs)


@pytest.mark.parametrize("suffix", SOURCES)
@pytest.mark.parametrize("name", NAMES)
def test_legacy_weights_load_into_a_model_of_the_same_kind(tmp_path: Path, name: str, suffix: str) -> None:
    held = golden(name + suffix).without("optimizer/")
    path = rewrite(tmp_path, held, "keras-legacy-weights")
    theirs, ours = (load(library(name), GOLDEN / f"{name}.keras", compile=False) for _ in range(2))
    forget(ours)

    ours.load_weights(path)

    assert variables(ours) == variables(theirs)


@pytest.mark.parametrize(("name", "form"), [("k3_subclassed", "keras"), ("k3_bf16", "keras")])
@pytest.mark.parametrize("is_template", [True, False])
def test_classes_and_dtypes_of_keras_3_alone(tmp_path: Path, name: str, form: Form, is_template: bool) -> None:
    held = golden(f"{name}.keras")
    if is_template:
        with source(GOLDEN / f"{name}.keras") as template:
            path = write(tmp_path, held.tensors, planned(held.tensors, form, template=template))
    else:
        path = rewrite(tmp_path, held, form)

    check_equal(name, load(keras, path), load(keras, GOLDEN / f"{name}.keras"))


def test_weights_of_a_subclassed_model_load_by_a_template(tmp_path: Path) -> None:
    held = golden("k3_subclassed.weights.h5")
    with source(GOLDEN / "k3_subclassed.weights.h5") as template:
        path = write(tmp_path, held.tensors, planned(held.tensors, "keras-weights", template=template))
    theirs, ours = (load(keras, GOLDEN / "k3_subclassed.keras") for _ in range(2))
    forget(ours)

    ours.load_weights(path)

    check_equal("k3_subclassed", ours, theirs)


def test_weights_in_several_files_load_though_one_group_is_spread(tmp_path: Path) -> None:
    path = rewrite(tmp_path, golden("k3_functional.weights.h5"), "keras-weights", most=2000)
    theirs, ours = (load(keras, GOLDEN / "k3_functional.keras") for _ in range(2))
    forget(ours)

    ours.load_weights(path)

    assert path.name == "model.weights.json"
    check_equal("k3_functional", ours, theirs)


@pytest.mark.parametrize(("suffix", "form"), [(".keras", "keras"), (".h5", "keras-legacy"), (".keras", "keras-legacy")])
def test_a_lambda_layer_is_carried_and_only_keras_runs_it(tmp_path: Path, suffix: str, form: Form) -> None:
    path = rewrite(tmp_path, golden(f"k3_lambda{suffix}"), form)

    ours = load(keras, path, safe_mode=False)

    theirs = load(keras, GOLDEN / "k3_lambda.keras", safe_mode=False)
    assert (predictions(ours, "k3_lambda") == predictions(theirs, "k3_lambda")).all()


def test_the_state_of_a_legacy_optimizer_is_written_and_restored_by_tf_keras(tmp_path: Path) -> None:
    path = rewrite(tmp_path, golden("k2_tutorial_legacyopt.h5"), "keras-legacy")

    ours = load(tf_keras, path)

    assert len(optimizer_variables(ours)) == 9
    check_equal("k2_tutorial_legacyopt", ours, load(tf_keras, GOLDEN / "k2_tutorial_legacyopt.h5"))


def test_a_model_without_the_optimizer_s_state_starts_it_anew(tmp_path: Path) -> None:
    held = golden("k3_tutorial.keras").without("optimizer/")

    path = rewrite(tmp_path, held, "keras")
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        ours = load(keras, path)

    theirs = load(keras, GOLDEN / "k3_tutorial.keras")
    assert (predictions(ours, "k3_tutorial") == predictions(theirs, "k3_tutorial")).all()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras asks TensorFlow's variables for it
@pytest.mark.parametrize("name", ["k2_tutorial", "k3_functional"])
def test_keras_saves_again_what_it_loaded_of_ours(tmp_path: Path, name: str) -> None:
    held = golden(f"{name}.keras")
    model = load(library(name), rewrite(tmp_path, held, "keras"))
    model.save(tmp_path / "again.keras")

    again = saved(tmp_path / "again.keras").without("metrics/")
    assert again.tensors.keys() == held.without("metrics/").tensors.keys()
    assert all(again.tensors[each].tobytes() == held.tensors[each].tobytes() for each in again.tensors)
