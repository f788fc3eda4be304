"""Small models of either Keras, as users write them, and data for them."""

from typing import Any

import numpy as np

from ckptmgr import arrays

SIZE, BATCH = 48, 8
STEPS = SIZE // BATCH


def compiled(lib: Any, model: Any, **options: Any) -> Any:
    """The model, ready to train: without compiling where that takes longer than the training."""
    is_tensorflow = lib.backend.backend() == "tensorflow"
    model.compile(**{"loss": "mse", "run_eagerly": is_tensorflow, **options})
    return model


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SIZE, 4)).astype(np.float32)
    return x, x @ np.array([[1], [-2], [3], [0.5]], np.float32)


def tutorial(
    lib: Any, *, units: int = 8, seed: int | None = 3, optimizer: Any = "adam", metrics: Any = ("mae",), **options: Any
) -> Any:
    """Dense, dropout, dense: the model of the tutorial "Save and load models"."""
    model = lib.Sequential(
        [
            lib.layers.Input((4,)),
            lib.layers.Dense(units, activation="relu"),
            lib.layers.Dropout(0.2, seed=seed),
            lib.layers.Dense(1),
        ]
    )
    return compiled(lib, model, optimizer=optimizer, metrics=list(metrics), **options)


def nested(lib: Any) -> Any:
    """A model in a model, batch normalization, and an LSTM in both directions."""
    inner = lib.Sequential([lib.layers.Input((4,)), lib.layers.Dense(6), lib.layers.BatchNormalization()])
    inputs = lib.layers.Input((4,))
    hidden = lib.layers.Reshape((3, 2))(inner(inputs))
    hidden = lib.layers.Bidirectional(lib.layers.LSTM(2))(hidden)
    model = lib.Model(inputs, lib.layers.Dense(1)(hidden))
    return compiled(lib, model, optimizer=lib.optimizers.SGD(0.01, momentum=0.9))


def custom(lib: Any) -> type:
    """A layer with own weights and sublayers, that tells its configuration."""

    class Scale(lib.layers.Layer):  # type: ignore[misc,name-defined]
        def __init__(self, units: int = 3, **options: Any) -> None:
            super().__init__(**options)
            self.units = units
            self.stack = [lib.layers.Dense(units), lib.layers.Dense(units)]

        def build(self, shape: Any) -> None:
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")
            self.offset = self.add_weight(shape=(shape[-1],), initializer="zeros", trainable=False)
            self.stack[0].build(shape)
            self.stack[1].build((shape[0], self.units))
            super().build(shape)

        def call(self, x: Any) -> Any:
            return self.stack[1](self.stack[0](x * self.scale + self.offset))

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "units": self.units}

    return Scale


def with_custom(lib: Any, layer: type) -> Any:
    model = lib.Sequential([lib.layers.Input((4,)), layer(5), lib.layers.Dense(1)])
    return compiled(lib, model, optimizer="rmsprop")


def subclassed(lib: Any) -> Any:
    """A model by attributes, with a weight of its own; built by a call."""

    class Net(lib.Model):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.stem = lib.layers.Dense(5)
            self.exp = [lib.layers.Dense(5), lib.layers.Dense(5)]
            self.out = lib.layers.Dense(1)
            self.gain = self.add_weight(shape=(5,), initializer="ones", name="gain")

        def call(self, x: Any) -> Any:
            x = self.stem(x) * self.gain
            for layer in self.exp:
                x = layer(x)
            return self.out(x)

    model = Net()
    model(data()[0][:2])
    return compiled(lib, model, optimizer="adam")


def train(model: Any, *callbacks: Any, epochs: int = 1, validation: bool = False) -> Any:
    x, y = data()
    return model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        validation_data=(x[:8], y[:8]) if validation else None,
    )


def predictions(model: Any) -> np.ndarray:
    return np.array(arrays.host_array(model(data()[0])))


def optimizer_values(model: Any) -> list[np.ndarray]:
    variables = model.optimizer.variables
    return [
        np.array(variable.numpy()) for variable in (variables() if callable(variables) and not list(variables) else variables)
    ]


def weights(model: Any) -> list[np.ndarray]:
    return [np.array(array) for array in model.get_weights()]


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return len(left) == len(right) and all(np.array_equal(one, other) for one, other in zip(left, right, strict=True))


def iterations(model: Any) -> int:
    return int(arrays.host_array(model.optimizer.iterations))
