"""The Keras tutorial "Save and load models", with ckptmgr and without TensorFlow between its saving and its loading."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import tf, tf_keras

import ckptmgr

EPOCHS, SIZE, BATCH = 50, 96, 32
BATCHES = SIZE // BATCH

WITHOUT_TENSORFLOW = """
import json, sys
import numpy as np
import ckptmgr
from ckptmgr import CheckpointManager

manager = CheckpointManager("training_2", backend="tf_bundle")
steps = [info.step for info in manager.steps()]
step, state = manager.restore()[:2]
into = {
    "layer_with_weights-0": {"kernel": np.zeros((784, 64), np.float32), "bias": np.zeros(64, np.float32)},
    "layer_with_weights-1": {"kernel": np.zeros((64, 10), np.float32), "bias": np.zeros(10, np.float32)},
}
filled = manager.restore(step, into=into, strict=False).state
assert filled["layer_with_weights-0"]["kernel"] is into["layer_with_weights-0"]["kernel"]
assert into["layer_with_weights-0"]["kernel"].any()
ckptmgr.save("weights/cp.ckpt", into, backend="tf_bundle")
CheckpointManager("ours", backend="tf_bundle").save(step, state)
assert not {"tensorflow", "keras", "tf_keras"} & {*sys.modules}
print(json.dumps({"steps": steps, "latest": manager.latest().step, "restored": step}))
"""


def create_model() -> Any:
    model = tf_keras.models.Sequential(
        [
            tf_keras.layers.Dense(64, activation="relu", input_shape=(784,)),
            tf_keras.layers.Dropout(0.2),
            tf_keras.layers.Dense(10),
        ]
    )
    model.compile(
        optimizer="adam",
        loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[tf_keras.metrics.SparseCategoricalAccuracy()],
    )
    return model


def images() -> tuple[np.ndarray, np.ndarray]:
    """Pictures that are somewhat like the one of their label."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 10, SIZE)
    return (rng.random((10, 784))[labels] + rng.normal(size=(SIZE, 784))).astype(np.float32), labels


class Tutorial:
    """A folder after the training of the tutorial, and what its model then predicts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.x, self.y = images()
        tf_keras.utils.set_random_seed(7)
        path = str(folder / "training_2" / "cp-{epoch:04d}.ckpt")
        callback = tf_keras.callbacks.ModelCheckpoint(filepath=path, save_weights_only=True, save_freq=5 * BATCHES)
        self.model = create_model()
        self.model.save_weights(path.format(epoch=0))
        self.model.fit(self.x, self.y, epochs=EPOCHS, batch_size=BATCH, callbacks=[callback], verbose=0)
        script = [sys.executable, "-c", WITHOUT_TENSORFLOW]
        done = subprocess.run(script, cwd=folder, env={**os.environ}, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        self.told = json.loads(done.stdout)

    def evaluated(self, model: Any) -> tuple[list[float], bytes]:
        return model.evaluate(self.x, self.y, verbose=0), model.predict(self.x, verbose=0).tobytes()


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Tutorial:
    return Tutorial(tmp_path_factory.mktemp("tutorial"))


def test_every_fifth_epoch_is_listed_without_tensorflow_and_the_last_is_the_latest(tutorial: Tutorial) -> None:
    assert tutorial.told == {"steps": [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50], "latest": 50, "restored": 50}


def test_weights_that_were_filled_into_numpy_arrays_and_saved_give_the_same_predictions(tutorial: Tutorial) -> None:
    fresh = create_model()
    untrained = tutorial.evaluated(fresh)

    fresh.load_weights(str(tutorial.folder / "weights" / "cp.ckpt")).expect_partial()

    assert tutorial.evaluated(fresh) == tutorial.evaluated(tutorial.model) != untrained


def test_run_of_ours_is_found_by_latest_checkpoint_and_gives_the_same_predictions(tutorial: Tutorial) -> None:
    fresh = create_model()

    fresh.load_weights(tf.train.latest_checkpoint(str(tutorial.folder / "ours"))).expect_partial()

    assert tutorial.evaluated(fresh) == tutorial.evaluated(tutorial.model)


def test_training_goes_on_from_ours_as_it_does_from_theirs(tutorial: Tutorial) -> None:
    ours, theirs = create_model(), create_model()

    for model, folder in ((ours, "ours"), (theirs, "training_2")):
        model.load_weights(tf.train.latest_checkpoint(str(tutorial.folder / folder))).expect_partial()
        tf_keras.utils.set_random_seed(11)
        model.fit(tutorial.x, tutorial.y, batch_size=BATCH, verbose=0, shuffle=False)

    assert [weight.numpy().tobytes() for weight in ours.weights] == [weight.numpy().tobytes() for weight in theirs.weights]
    assert int(ours.optimizer.iterations) == (EPOCHS + 1) * BATCHES


@pytest.mark.filterwarnings("ignore:.*HDF5 file via `model.save\\(\\)`:UserWarning")  # tf_keras's advice on its own formats
def test_weights_of_a_saved_model_are_read_from_its_folder(tutorial: Tutorial, tmp_path: Path) -> None:
    tutorial.model.save(tmp_path / "my_model", save_format="tf")

    state = ckptmgr.load(tmp_path / "my_model")

    found = [state[f"layer_with_weights-{layer}"][part] for layer in (0, 1) for part in ("kernel", "bias")]
    assert [array.tobytes() for array in found] == [weight.numpy().tobytes() for weight in tutorial.model.weights]
