"""What users of TensorFlow and Keras keep in checkpoints: live objects, how they are saved and restored, where variables stand.

Every program trains one step when it is made, so that its optimizer has its variables.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from frameworks import Lazy, keras, tf, tf_keras

tf_modules = Lazy("tf_modules")  # its classes need their bases
PARTS = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance", "embeddings")


@dataclass(frozen=True)
class Program:
    """``state`` nests the live variables as the checkpoint does. ``write`` gives the prefix that it wrote.

    ``restore`` raises if the checkpoint lacks anything that is in the program, and unless it ``is_counted`` (leaves a
    ``save_counter`` aside), also if it holds anything more.
    """

    state: Mapping[str, Any]
    train: Callable[[], object]
    write: Callable[[str], str]
    restore: Callable[[str], object]
    is_counted: bool = True


def flat(state: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], tuple[str, tuple[int, ...], Any]]:
    """Dtype, shape and bits of every leaf by its path; bits of strings are the list of them."""
    if isinstance(state, Mapping):
        return {at: leaf for key, value in state.items() for at, leaf in flat(value, (*path, str(key))).items()}
    if isinstance(state, list | tuple):
        return flat(dict(enumerate(state)), path)
    value = state.numpy() if hasattr(state, "numpy") else state
    array = np.asarray(value, object if isinstance(value, bytes) else None)  # numpy's own bytes lose NULs at their end
    if array.dtype.kind == "O":
        return {path: ("string", array.shape, array.tolist())}
    return {path: (array.dtype.name, array.shape, array.tobytes())}


def template(state: Any) -> Any:
    """Numpy arrays of the same structure, dtypes and shapes, all zero."""
    if isinstance(state, Mapping):
        return {key: template(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [template(value) for value in state]
    array = np.asarray(state.numpy())
    return np.full(array.shape, b"", object) if state.dtype == tf.string else np.zeros_like(array)


def object_based(checkpoint: Any, state: Mapping[str, Any], train: Callable[[], object]) -> Program:
    """A program that saves with `tf.train.Checkpoint`."""
    return Program(state, train, checkpoint.save, lambda prefix: checkpoint.restore(prefix).assert_consumed())


def by_weights(model: Any, state: Mapping[str, Any], train: Callable[[], object]) -> Program:
    """A program that saves with Keras' ``save_weights``, which asks for no counter."""

    def write(prefix: str) -> str:
        model.save_weights(prefix)
        return prefix

    def restore(prefix: str) -> None:
        status = model.load_weights(prefix)
        status.assert_existing_objects_matched()
        has_counter = any(name.startswith("save_counter/") for name, _ in tf.train.list_variables(prefix))
        if not has_counter:
            status.assert_consumed()

    return Program(state, train, write, restore, is_counted=False)


def layers(model: Any) -> dict[str, Any]:
    """Weights of a tf_keras model, as it names their layers."""
    with_weights = [layer for layer in model.layers if layer.weights]
    return {f"layer_with_weights-{number}": parts(layer) for number, layer in enumerate(with_weights)}


def parts(layer: Any) -> dict[str, Any]:
    """Weights of one layer by their attributes."""
    return {part: getattr(layer, part) for part in PARTS if getattr(layer, part, None) is not None}


def kept_by(optimizer: Any, first: int) -> dict[str, Any]:
    """An optimizer's variables; those below number ``first`` have names of their own."""
    kept = {str(number): variable for number, variable in enumerate(optimizer._variables) if number >= first}
    return {"_iterations": optimizer.iterations, "_learning_rate": optimizer._learning_rate, "_variables": kept}


def batch(features: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """The data of every step."""
    rng = np.random.default_rng(9)
    return rng.normal(size=(16, features)).astype(np.float32), rng.normal(size=(16, labels)).astype(np.float32)


def fitted(model: Any, features: int, labels: int) -> Callable[[], object]:
    """One step of training, which is also done now."""
    x, y = batch(features, labels)

    def train() -> object:
        return model.train_on_batch(x, y)

    train()
    return train


def nested(seed: int) -> Program:
    """Modules, containers and plain variables in one `tf.train.Checkpoint`."""
    rng = np.random.default_rng(seed)
    net, step = tf_modules.Net(rng), tf.Variable(seed, dtype=tf.int64)
    listed = [tf.Variable([float(seed)]), {"k": tf.Variable([[2.0]])}]
    blocks = [{"w": block.w, "b": block.b} for block in (*net.blocks, net.pair[1])]
    inside = {"blocks": blocks[:2], "odd": dict(net.odd), "text": net.text, "tied": net.tied, "pair": [net.pair[0], blocks[2]]}

    def train() -> None:
        step.assign_add(1)
        for block in net.blocks:
            block.w.assign(block.w * 0.5 + tf.reduce_sum(net.tied))

    return object_based(tf.train.Checkpoint(net=net, step=step, lst=listed), {"net": inside, "step": step, "lst": listed}, train)


def sequential_model(seed: int, optimizer: Any = None) -> Any:
    """A small tf_keras Sequential with layers that have no weights between others; compiled if there is an optimizer."""
    tf_keras.utils.set_random_seed(seed)
    model = tf_keras.Sequential(
        [
            tf_keras.layers.Dense(5, activation="relu", input_shape=(6,)),
            tf_keras.layers.Activation("tanh"),
            tf_keras.layers.BatchNormalization(),
            tf_keras.layers.Dense(2),
        ]
    )
    if optimizer is not None:
        model.compile(optimizer=optimizer, loss="mse", run_eagerly=True)
    return model


def subclassed(seed: int) -> Program:
    """A subclassed tf_keras model with RMSprop, by ``save_weights``."""
    tf_keras.utils.set_random_seed(seed)
    model = tf_modules.Tower()
    model.compile(optimizer=tf_keras.optimizers.RMSprop(0.01, momentum=0.9), loss="mse", run_eagerly=True)
    train = fitted(model, 6, 2)
    stages = {"1": parts(model.stages[1])}  # the other one is `first`, which is the shorter way to it
    heads = {"main": parts(model.heads["main"])}
    state = {"first": parts(model.first), "stages": stages, "heads": heads, "scale": model.scale}
    return by_weights(model, {**state, "optimizer": kept_by(model.optimizer, 1)}, train)


def functional_model(seed: int) -> Any:
    """A small tf_keras functional model with a branch and a layer that is used twice."""
    tf_keras.utils.set_random_seed(seed)
    given = tf_keras.Input((6,))
    shared = tf_keras.layers.Dense(6, activation="relu")
    left, right = shared(shared(given)), tf_keras.layers.Dense(6, use_bias=False)(given)
    model = tf_keras.Model(given, tf_keras.layers.Dense(2)(tf_keras.layers.add([left, right])))
    model.compile(optimizer=tf_keras.optimizers.Adam(0.01, amsgrad=True), loss="mse", run_eagerly=True)
    return model


def sequential(seed: int) -> Program:
    """A tf_keras Sequential with Adam, by ``save_weights``."""
    model = sequential_model(seed, tf_keras.optimizers.Adam(0.01))
    train = fitted(model, 6, 2)
    return by_weights(model, {**layers(model), "optimizer": kept_by(model.optimizer, 1)}, train)


def functional(seed: int) -> Program:
    """A tf_keras functional model with Adam, by ``save_weights``."""
    model = functional_model(seed)
    train = fitted(model, 6, 2)
    return by_weights(model, {**layers(model), "optimizer": kept_by(model.optimizer, 1)}, train)


def functional_checkpoint(seed: int) -> Program:
    """A tf_keras functional model beside its optimizer in a `tf.train.Checkpoint`."""
    model = functional_model(seed)
    train = fitted(model, 6, 2)
    state = {"model": layers(model), "optimizer": kept_by(model.optimizer, 1)}
    return object_based(tf.train.Checkpoint(model=model, optimizer=model.optimizer), state, train)


def legacy_state(model: Any, optimizer: str) -> dict[str, Any]:
    """Weights of a tf_keras model beside the slot variables that a legacy optimizer keeps for them."""
    state = layers(model)
    for weights in state.values():
        for part, variable in [*weights.items()]:
            if variable.trainable:
                slots = {slot: model.optimizer.get_slot(variable, slot) for slot in model.optimizer.get_slot_names()}
                weights |= {f"{part}/.OPTIMIZER_SLOT/{optimizer}/{slot}": kept for slot, kept in slots.items()}
    return state


def legacy_hyper(optimizer: Any) -> dict[str, Any]:
    """What a legacy optimizer counts and was set to."""
    return {
        "iter": optimizer.iterations,
        **{name: optimizer._hyper[name] for name in ("beta_1", "beta_2", "decay", "learning_rate")},
    }


def legacy(seed: int) -> Program:
    """A tf_keras Sequential with the legacy Adam, by ``save_weights``."""
    model = sequential_model(seed, tf_keras.optimizers.legacy.Adam(0.01))
    train = fitted(model, 6, 2)
    return by_weights(model, {**legacy_state(model, "optimizer"), "optimizer": legacy_hyper(model.optimizer)}, train)


def legacy_checkpoint(seed: int) -> Program:
    """The same in a `tf.train.Checkpoint`."""
    model = sequential_model(seed, tf_keras.optimizers.legacy.Adam(0.01))
    train = fitted(model, 6, 2)
    state = {"model": legacy_state(model, "optimizer"), "optimizer": legacy_hyper(model.optimizer)}
    return object_based(tf.train.Checkpoint(model=model, optimizer=model.optimizer), state, train)


def keras3_functional(seed: int) -> Program:
    """A functional model of Keras 3 beside its optimizer in a `tf.train.Checkpoint`."""
    keras.utils.set_random_seed(seed)
    given = keras.Input((6,))
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(5, activation="relu")(given))
    return of_keras3(keras.Model(given, keras.layers.Dense(2)(hidden)), lambda operations: {"_operations": operations})


def keras3_sequential(seed: int) -> Program:
    """A Sequential of Keras 3 beside its optimizer in a `tf.train.Checkpoint`."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5), keras.layers.BatchNormalization(), keras.layers.Dense(2)])
    return of_keras3(model, lambda operations: {"_functional": {"_operations": operations}})


def of_keras3(model: Any, nest: Callable[[dict[str, Any]], dict[str, Any]]) -> Program:
    """``nest`` puts the layers, by their numbers among the model's operations, where the model has them."""
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse", run_eagerly=True)
    train = fitted(model, 6, 2)
    operations = {
        str(number): {("_kernel" if part == "kernel" else part): weight for part, weight in parts(operation).items()}
        for number, operation in enumerate(getattr(model, "_functional", model).operations)
        if getattr(operation, "weights", None)
    }
    state = {"model": nest(operations), "optimizer": kept_by(model.optimizer, 2)}
    return object_based(tf.train.Checkpoint(model=model, optimizer=model.optimizer), state, train)


PROGRAMS: Mapping[str, Callable[[int], Program]] = {
    "nested": nested,
    "sequential": sequential,
    "functional": functional,
    "functional_checkpoint": functional_checkpoint,
    "subclassed": subclassed,
    "legacy": legacy,
    "legacy_checkpoint": legacy_checkpoint,
    "keras3_functional": keras3_functional,
    "keras3_sequential": keras3_sequential,
}
