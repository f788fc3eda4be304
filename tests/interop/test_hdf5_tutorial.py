"""The Keras tutorial "Save and load models", whole models: ckptmgr, and neither Keras nor h5py, between saving and loading."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import keras, tf_keras
from keras_golden_models import optimizer_variables

import ckptmgr

SIZE, CLASSES, PIXELS = 96, 10, 784
LIBRARIES = {"keras2": tf_keras, "keras3": keras}
WHOLE = [("keras2", ".h5"), ("keras2", ".keras"), ("keras3", ".h5"), ("keras3", ".keras")]

SHOW = """
import sys
from ckptmgr.cli.app import app

app(standalone_mode=False)
assert not {"tensorflow", "keras", "tf_keras", "h5py"} & {*sys.modules}
"""
WITHOUT_KERAS = """
import json, sys
import numpy as np
import ckptmgr
from ckptmgr import CheckpointManager
from ckptmgr_hdf5 import HDF5Backend

manager = CheckpointManager("run", backend="hdf5")
with ckptmgr.open_checkpoint(NAME) as opened:
    state, carried = opened.load(), dict(opened.metadata)
config = carried.get("config") or carried["model_config"]
manager.save(1, state, metadata=carried, assets={"model_config.json": config.encode()})

step = manager.open(1)
state, carried = step.load(), dict(step.metadata)
assert step.asset("model_config.json").decode() == config
assert type(state["layers"]["dense"]["kernel"]) is np.ndarray
for form, name in ("keras-legacy", "carried.h5"), ("keras", "carried.keras"):
    ckptmgr.save(name, state, backend=HDF5Backend(form=form), metadata=carried)
ckptmgr.swap_weights(NAME, state, "template" + NAME[NAME.index("."):])
doubled = {"layers": {"dense_1": {"kernel": state["layers"]["dense_1"]["kernel"] * 2}}}
ckptmgr.swap_weights(NAME, doubled, "doubled" + NAME[NAME.index("."):])
assert not {"tensorflow", "keras", "tf_keras", "h5py"} & {*sys.modules}
"""


def create_model(lib: Any) -> Any:
    layers = lib.layers
    model = lib.Sequential(
        [
            lib.Input((PIXELS,)),
            layers.Dense(64, activation="relu", name="dense"),
            layers.Dropout(0.2, name="dropout"),
            layers.Dense(CLASSES, name="dense_1"),
        ]
    )
    loss = lib.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss, metrics=[lib.metrics.SparseCategoricalAccuracy()])
    return model


def images() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Pictures that are somewhat like the one of their label."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, CLASSES, SIZE)
    return (rng.random((CLASSES, PIXELS))[labels] + rng.normal(size=(SIZE, PIXELS))).astype(np.float32), labels


def run(folder: Path, *command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


class Tutorial:
    """A folder with a model that was trained and saved by Keras, and with what ckptmgr then made of the file."""

    def __init__(self, folder: Path, lib: Any, suffix: str) -> None:
        self.folder, self.lib, self.suffix = folder, lib, suffix
        self.x, self.y = images()
        lib.utils.set_random_seed(7)
        self.model = create_model(lib)
        self.model.fit(self.x, self.y, epochs=5, batch_size=32, verbose=0)
        self.expected = self.evaluated(self.model)
        self.model.save(str(folder / f"my_model{suffix}"))
        self.original = self.load("my_model")
        run(folder, "-c", f"NAME = 'my_model{suffix}'\n{WITHOUT_KERAS}")

    def load(self, stem: str, suffix: str | None = None) -> Any:
        self.lib.utils.set_random_seed(11)  # from which Keras 3 seeds a Dropout that it loads
        model = self.lib.models.load_model(str(self.folder / f"{stem}{suffix or self.suffix}"))
        model.run_eagerly = True  # compiling would take longer than the test
        return model

    def evaluated(self, model: Any) -> tuple[list[float], bytes]:
        """Loss and accuracy, and the predictions."""
        return model.evaluate(self.x, self.y, verbose=0), np.asarray(model.predict(self.x, verbose=0)).tobytes()

    def __str__(self) -> str:
        return f"{self.lib.__name__} {self.suffix}"


@pytest.fixture(scope="module", params=WHOLE, ids=lambda case: "".join(case))
def tutorial(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tutorial:
    name, suffix = request.param
    return Tutorial(tmp_path_factory.mktemp("tutorial"), LIBRARIES[name], suffix)


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*saving your model as an HDF5 file:UserWarning"),  # Keras' advice on its own formats
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras asks TensorFlow's variables for it
]


def optimizer(model: Any) -> list[bytes]:
    return [np.asarray(each).tobytes() for each in optimizer_variables(model)]


def test_show_lists_architecture_training_and_optimizer_without_keras(tutorial: Tutorial) -> None:
    out = run(tutorial.folder, "-c", SHOW, "show", f"my_model{tutorial.suffix}")

    facts = [line.split(maxsplit=1) for line in out.splitlines() if not line.startswith(" ")]
    assert [text for title, text in facts if title == "layer"][-3:] == ["dense (Dense)", "dropout (Dropout)", "dense_1 (Dense)"]
    assert [text for title, text in facts if title in ("loss", "metrics")] == [
        "sparse_categorical_crossentropy",
        "sparse_categorical_accuracy",
    ]
    assert [text.split()[0].lower() for title, text in facts if title == "optimizer"] == ["adam"]
    assert [*map(str.split, out.splitlines())].count(["kernel", "float32", "784x64", "200.7", "kB"]) == 1
    assert ["iteration", "int64", "scalar", "8", "bytes"] in map(str.split, out.splitlines())


@pytest.mark.parametrize("stem", ["carried", "template"])
def test_what_ckptmgr_wrote_gives_the_same_accuracy_and_predictions(tutorial: Tutorial, stem: str) -> None:
    assert tutorial.evaluated(tutorial.load(stem)) == tutorial.expected


def test_the_run_is_exported_to_the_other_form_as_well(tutorial: Tutorial) -> None:
    other = {".h5": ".keras", ".keras": ".h5"}[tutorial.suffix]

    assert tutorial.evaluated(tutorial.load("carried", other)) == tutorial.expected


@pytest.mark.parametrize("stem", ["carried", "template", "doubled"])
def test_the_optimizer_is_restored_as_from_the_original(tutorial: Tutorial, stem: str) -> None:
    found = optimizer(tutorial.load(stem))

    assert found == optimizer(tutorial.original)
    if (tutorial.lib, tutorial.suffix) != (keras, ".h5"):  # from which Keras 3 does not restore it, whoever wrote it
        assert found == optimizer(tutorial.model)


def test_only_the_weights_that_were_given_are_swapped(tutorial: Tutorial) -> None:
    *rest, kernel, bias = map(np.asarray, tutorial.load("doubled").weights)
    *rest_before, kernel_before, bias_before = map(np.asarray, tutorial.model.weights)

    np.testing.assert_array_equal(kernel, kernel_before * 2)
    assert [each.tobytes() for each in (*rest, bias)] == [each.tobytes() for each in (*rest_before, bias_before)]


def test_training_goes_on_as_from_the_original(tutorial: Tutorial) -> None:
    ours, theirs = tutorial.load("template"), tutorial.load("my_model")

    for model in (ours, theirs):
        tutorial.lib.utils.set_random_seed(11)
        if (tutorial.lib, tutorial.suffix) == (keras, ".h5"):  # Keras 3 cannot go on with the optimizer it makes of this file
            model.compile("adam", model.loss)
        model.fit(tutorial.x, tutorial.y, batch_size=32, verbose=0, shuffle=False)

    assert [np.asarray(each).tobytes() for each in ours.weights] == [np.asarray(each).tobytes() for each in theirs.weights]


def test_weights_of_keras_3_are_swapped_in_their_own_file(tmp_path: Path) -> None:
    keras.utils.set_random_seed(7)
    model, fresh = create_model(keras), create_model(keras)
    path = str(tmp_path / "my.weights.h5")
    model.save_weights(path)
    bias = np.arange(CLASSES, dtype=np.float32)

    with ckptmgr.open_checkpoint(path) as opened:
        name = next(name for name, spec in opened.specs.items() if spec.shape == (CLASSES,) and not name.startswith("optimizer"))
    ckptmgr.swap_weights(path, {name: bias}, path)
    fresh.load_weights(path)

    *rest, found = map(np.asarray, fresh.weights)
    np.testing.assert_array_equal(found, bias)
    assert [each.tobytes() for each in rest] == [np.asarray(each).tobytes() for each in model.weights[:-1]]
