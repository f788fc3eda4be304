"""A process that is killed in `fit`, at any batch, and started again; and the other tests on Keras 3's other backends."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import keras
from keras_models import predictions, train, tutorial

from ckptmgr import CheckpointManager
from ckptmgr.integrations.keras import CheckpointCallback

TESTS = Path(__file__).parent
FRAMEWORKS = {"tensorflow": "keras", "jax": "keras", "torch": "keras", "tf_keras": "tf_keras"}
EPOCHS, CHOSEN = 3, 9

# The last start also trains without a break, to compare with.
SCRIPT = """
import importlib, json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import keras_models
from ckptmgr import CheckpointManager, KeepLast
from ckptmgr.integrations.keras import ResumeCallback

lib = importlib.import_module(sys.argv[2])
if sys.argv[2] == "tf_keras":
    lib.backend.experimental.enable_tf_random_generator()


class Killing(lib.callbacks.Callback):
    left = int(sys.argv[3])

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def model():
    lib.utils.set_random_seed(7)
    return keras_models.tutorial(lib)


manager = CheckpointManager("run", retention=KeepLast(2))
resumed = model()
history = keras_models.train(resumed, ResumeCallback(manager, save_freq=2), Killing(), epochs=3, validation=True)
whole = model()
expected = keras_models.train(whole, epochs=3, validation=True)
same = keras_models.same
print(json.dumps({
    "weights": same(keras_models.weights(resumed), keras_models.weights(whole)),
    "optimizer": same(keras_models.optimizer_values(resumed), keras_models.optimizer_values(whole)),
    "history": history.history == expected.history and history.epoch == [0, 1, 2],
    "steps": [info.step for info in manager.steps()],
}))
"""


def environment(framework: str) -> dict[str, str]:
    return {
        **os.environ,
        "KERAS_BACKEND": framework if FRAMEWORKS[framework] == "keras" else "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def start(framework: str, folder: Path, kill_at: int) -> "subprocess.CompletedProcess[str]":
    arguments = [sys.executable, "-c", SCRIPT, str(TESTS.parent), FRAMEWORKS[framework], str(kill_at)]
    return subprocess.run(arguments, cwd=folder, env=environment(framework), capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_killed_training_ends_as_the_uninterrupted(framework: str, tmp_path: Path) -> None:
    at_random = random.randrange(1, 8)

    killed = [start(framework, tmp_path, batch).returncode for batch in (CHOSEN, at_random)]
    done = start(framework, tmp_path, 0)

    assert killed == [-9, -9], at_random
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found == {"weights": True, "optimizer": True, "history": True, "steps": [16, 18]}, at_random


RESTORE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import keras, keras_models, numpy as np
from ckptmgr import CheckpointManager
from ckptmgr.integrations.keras import load_model, restore_weights

manager, fresh = CheckpointManager("run"), keras_models.tutorial(keras)
restore_weights(manager, fresh)
expected = np.load("expected.npy")
close = [np.allclose(keras_models.predictions(model), expected, atol=1e-5) for model in (fresh, load_model(manager))]
print(json.dumps({"close": close, "iterations": keras_models.iterations(fresh)}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_step_of_one_backend_fills_a_model_on_another(backend: str, tmp_path: Path) -> None:
    model = tutorial(keras)
    train(model, CheckpointCallback(CheckpointManager(tmp_path / "run")))
    np.save(tmp_path / "expected.npy", predictions(model))

    arguments = [sys.executable, "-c", RESTORE, str(TESTS.parent)]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment(backend), capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"close": [True, True], "iterations": 6}


CHOICE = " or ".join(
    [
        "test_each_epoch",
        "test_every_fifth",
        "test_latest_weights",
        "test_best_value",
        "test_restored_weights_do_not",
        "test_other_model",
        "test_loaded_model_goes_on_as_the_saved_one and safetensors",
        "test_step_of_the_callback",
        "test_custom_layer",
        "test_subclassed",
        "test_wrapped",
        "test_optimizer_variables",
        "test_resumed_training and 4",
        "test_random_streams",
        "test_dropout_without",
        "test_callback_beside",
    ]
)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_same_holds_on_another_backend(backend: str) -> None:
    files = [str(TESTS / f"test_keras_integration_{name}.py") for name in ("names", "callback", "models", "resume")]
    of_keras = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"  # its torch variables
    arguments = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", of_keras, *files]

    done = subprocess.run(
        [*arguments, "-k", f"keras3 and ({CHOICE})"],
        cwd=TESTS.parents[1],
        env=environment(backend),
        capture_output=True,
        text=True,
        timeout=500,
    )

    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
