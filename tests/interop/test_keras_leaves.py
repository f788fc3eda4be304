"""Variables of Keras 3 on each of its backends; Keras fixes its backend when it is imported, so each has its own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
SCRIPT = '''
import sys
import keras
import numpy as np
import states
from ckptmgr import arrays, tree

def model():
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dense(2)])
    made.compile(optimizer="adam", loss="mse")
    made.optimizer.build(made.trainable_variables)
    return made

def variables(made):
    return {"model": {v.path: v for v in made.variables}, "optimizer": {v.path: v for v in made.optimizer.variables}}

def renamed(made):
    """Keras counts its layers: by position."""
    return {"model": list(made.variables), "optimizer": list(made.optimizer.variables)}

one, other = model(), model()
for seed, made in enumerate((one, other)):
    for variable in [*made.variables, *made.optimizer.variables]:
        variable.assign(np.random.default_rng(seed).integers(0, 9, variable.shape).astype(variable.dtype))

flat = tree.flatten(variables(one))
assert len(flat.tensors) == len(one.variables) + len(one.optimizer.variables), list(flat.tensors)
assert "model/" + one.variables[0].path in flat.specs

kernel = other.variables[0]
inner = kernel.value
restored = states.restored(renamed(one), renamed(other))
assert restored["model"][0] is kernel
for mine, theirs in zip(other.variables + other.optimizer.variables, one.variables + one.optimizer.variables):
    assert mine.dtype == theirs.dtype
    assert np.array_equal(keras.ops.convert_to_numpy(mine), keras.ops.convert_to_numpy(theirs)), mine.path
if keras.backend.backend() != "jax":
    assert kernel.value is inner, "filled in its own memory"
assert np.array_equal(one.predict(np.ones((2, 4)), verbose=0), other.predict(np.ones((2, 4)), verbose=0)), "both compute the same"

half, into = (keras.Variable(np.full((2, 3), x, np.float32), dtype="bfloat16") for x in (1.5, 0.0))
assert arrays.describe(half).dtype == "bfloat16"
assert states.restored({"w": half}, {"w": into})["w"] is into
assert arrays.host_array(into).tolist() == [[1.5] * 3] * 2

flat = tree.flatten({"a": kernel, "b": kernel, "c": other.variables[1]})
assert flat.aliases == {"b": "a"}
print("good")
'''


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch", "numpy"])
def test_variables_are_read_and_filled_on_every_backend(backend: str) -> None:
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(TESTS)}

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300, check=False
    )

    assert done.stdout.strip().endswith("good"), done.stderr[-3000:]
