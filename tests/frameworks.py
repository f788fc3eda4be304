"""The frameworks as tests name them: imported when a test first uses one, and not while tests are collected.

Every process of pytest imports all test modules before its first test. With plain imports the tests that fork would fork a
process full of frameworks, their threads and their handlers, which no child survives for sure. So, in a test module::

    from frameworks import tf  # and not: import tensorflow as tf

Then `tests/conftest.py` runs the tests of such modules last, and imports what they name before the first of them;
`syscalls.start_child` refuses to fork where a framework is.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class Lazy:
    """Stands for a module that its first use imports."""

    is_collecting = True  # then pytest looks at some attributes of all that a test module names

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, attribute: str) -> Any:
        if Lazy.is_collecting:
            raise AttributeError(f"{self.name}.{attribute}: use it in tests, for it is not imported while they are collected")
        return getattr(self.load(), attribute)

    def load(self) -> Any:
        """The module, which is imported if it is not yet."""
        return importlib.import_module(self.name)


def named_by(module: ModuleType) -> list[Lazy]:
    """The frameworks that a test module names."""
    return [value for value in vars(module).values() if isinstance(value, Lazy)]


def loaded() -> list[str]:
    """The frameworks that this process has imported."""
    return sorted({"jax", "keras", "tensorflow", "tf_keras", "torch"} & sys.modules.keys())


jax = Lazy("jax")
keras = Lazy("keras")
tf = Lazy("tensorflow")
tf_keras = Lazy("tf_keras")
torch = Lazy("torch")
transformers = Lazy("transformers")
