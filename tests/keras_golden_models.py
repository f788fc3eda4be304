"""What it takes to load the models of ``golden/keras`` in either Keras, and to compare two of them."""

from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "keras"


def custom_objects(lib: Any) -> dict[str, type]:
    """The classes that the models need besides Keras' own."""

    class ScaleShift(lib.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, init_scale: float = 1.5, **options: Any) -> None:
            super().__init__(**options)
            self.init_scale = init_scale

        def build(self, shape: Any) -> None:
            self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer="ones")
            self.shift = self.add_weight(name="shift", shape=(), initializer="zeros")
            self.calls = self.add_weight(name="calls", shape=(), dtype="int32", initializer="zeros", trainable=False)

        def call(self, x: Any) -> Any:
            return self.scale * x + self.shift

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "init_scale": self.init_scale}

    class Blocky(lib.Model):  # type: ignore[misc,name-defined]
        def __init__(self, width: int = 12, **options: Any) -> None:
            super().__init__(**options)
            self.width = width
            layers = lib.layers
            self.blocks = [layers.Dense(width, "relu"), layers.Dense(width, "relu"), layers.BatchNormalization()]
            self.heads = {"a": layers.Dense(3), "b": layers.Dense(2)}
            self.drop = layers.Dropout(0.1, seed=7)

        def build(self, shape: Any) -> None:
            self.gain = self.add_weight(name="gain", shape=(self.width,), initializer="ones")
            sizes = [shape[-1], self.width, self.width]
            for block, size in zip(self.blocks, sizes, strict=True):
                block.build((None, size))
            for head in self.heads.values():
                head.build((None, self.width))

        def call(self, x: Any, training: bool = False) -> Any:
            for block in self.blocks:
                x = block(x)
            x = self.drop(x, training=training) * self.gain
            return lib.ops.concatenate([self.heads["a"](x), self.heads["b"](x)], -1)

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "width": self.width}

    both = {"ScaleShift": ScaleShift, "Blocky": Blocky}
    return {**both, **{f"ckptfix>{name}": kind for name, kind in both.items()}}


def load(lib: Any, path: Path, **options: Any) -> Any:
    """A whole model; random numbers start anew with it."""
    lib.utils.set_random_seed(1)
    model = lib.models.load_model(str(path), custom_objects=custom_objects(lib), **options)
    model.run_eagerly = True  # compiling would take longer than the test
    return model


def inputs(name: str) -> Any:
    with np.load(GOLDEN / f"{name}.expected.npz") as held:
        found = [held[key] for key in sorted(held) if key.startswith("x/")]
    return found if len(found) > 1 else found[0]


def predictions(model: Any, name: str) -> np.ndarray[Any, Any]:
    return np.asarray(model.predict(inputs(name), verbose=0))


def variables(model: Any) -> list[tuple[str, bytes]]:
    """All weights but the state of random numbers, which is in no file, and then the optimizer's."""
    held = [each for each in model.variables if "seed_generator" not in getattr(each, "path", "")]
    return [_value(each) for each in (*held, *optimizer_variables(model))]


def optimizer_variables(model: Any) -> list[Any]:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        return []
    found = getattr(optimizer, "weights", None)
    return list(optimizer.variables if found is None else found)


def forget(model: Any) -> None:
    """Sets all that a file gives to zero."""
    for each in [*model.weights, *optimizer_variables(model)]:
        if "seed_generator" not in getattr(each, "path", ""):
            each.assign(np.zeros(each.shape, np.asarray(each).dtype))


def train(model: Any, name: str) -> float:
    """One step of training; the targets are what the fixtures' generators would make of other numbers."""
    x = inputs(name)
    first = x[0] if isinstance(x, list) else x
    rng = np.random.default_rng(5)
    classes = {"tutorial": 10, "functional": 2}.get(name.split("_")[1])
    width = {"k3_bf16": 4, "k3_subclassed": 5}.get(name, 0)
    y = rng.normal(size=(len(first), width)).astype("f4") if classes is None else rng.integers(0, classes, len(first))
    return float(np.ravel(np.asarray(model.train_on_batch(x, y)))[0])


def _value(variable: Any) -> tuple[str, bytes]:
    array = np.asarray(variable)
    return f"{array.dtype} {array.shape}", array.tobytes()
