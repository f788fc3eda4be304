"""Both Keras, for the tests of `ckptmgr.integrations.keras`."""

import importlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")
LIBRARIES = {"keras3": "keras"} if BACKEND in ("jax", "torch") else {"keras3": "keras", "keras2": "tf_keras"}


@pytest.fixture(params=LIBRARIES)
def lib(request: pytest.FixtureRequest) -> Iterator[Any]:
    """``keras`` (with the backend that the environment chose) or ``tf_keras`` with random states that can be read."""
    library = importlib.import_module(LIBRARIES[request.param])
    if request.param == "keras3":
        yield library
        return
    library.backend.experimental.enable_tf_random_generator()
    yield library
    library.backend.experimental.disable_tf_random_generator()
