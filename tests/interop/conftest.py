"""Both Keras, for the tests of `ckptmgr.integrations.keras`."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from frameworks import keras, tf_keras

BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")
LIBRARIES = {"keras3": keras} if BACKEND in ("jax", "torch") else {"keras3": keras, "keras2": tf_keras}


@pytest.fixture(params=LIBRARIES)
def lib(request: pytest.FixtureRequest) -> Iterator[Any]:
    """``keras`` (with the backend that the environment chose) or ``tf_keras`` with random states that can be read."""
    library = LIBRARIES[request.param]
    if library is keras:
        yield library
        return
    library.backend.experimental.enable_tf_random_generator()
    yield library
    library.backend.experimental.disable_tf_random_generator()
