"""The demo's training run: a network of two hidden layers learns handwritten digits with Adam, in plain numpy.

Everything the next step depends on is in one state tree: weights, moments, the random generator, the order of the
current epoch and the place in it. So a run that is cut off anywhere and resumed computes exactly the same numbers.
"""

import itertools
import os
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from ckptmgr import CheckpointManager, KeepBest, KeepEvery, KeepLast, load

State: TypeAlias = dict[str, Any]
Weights: TypeAlias = dict[str, np.ndarray]

RETENTION = KeepLast(3) | KeepEvery(200) | KeepBest("val_loss", n=2, mode="min")
SAVE_EVERY = 20
BATCH = 64
WIDTHS = (64, 256, 256, 10)
RATE, DECAY_FIRST, DECAY_SECOND = 2e-3, 0.9, 0.999
NOISE = np.float32(0.1)
VALIDATION = 297  # images that are kept from training


def main() -> None:
    """Trains to the end in this process: ``folder`` of the run, ``data`` file and number of ``steps`` are in `sys.argv`.

    Says on standard output when a save begins and when it is committed, one line each; ends when nobody listens any more.
    """
    folder, data, steps = sys.argv[1:]
    try:
        train(folder, load(data), int(steps), lambda event, step: print(event, step, flush=True))
    except BrokenPipeError:
        os._exit(1)  # Python would try once more to say it, and tell of that


def train(folder: str, data: State, steps: int, tell: Callable[[str, int], None]) -> None:
    """Resumes the run in ``folder``, or begins it, and trains until ``steps`` are done and saved."""
    with CheckpointManager(folder, retention=RETENTION) as manager:
        step, state = manager.restore_or_initialize(lambda: initial(len(data["images"]) - VALIDATION, steps))
        tell("start", step)
        while step < steps:
            advance(state, data, step)
            step += 1
            if step % SAVE_EVERY == 0 or step == steps:
                metrics = validate(state, data)
                tell("save", step)
                manager.save(step, state, metrics=metrics, metadata={"epoch": state["epoch"]})
                tell("saved", step)


def initial(images: int, steps: int) -> State:
    """The state before the first step of a run over that many training images."""
    rng = np.random.default_rng(2026)
    weights: Weights = {}
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(WIDTHS)):
        weights[f"w{layer}"] = (rng.standard_normal((fan_in, fan_out)) * np.sqrt(2 / fan_in)).astype(np.float32)
        weights[f"b{layer}"] = np.zeros(fan_out, np.float32)
    return {
        "weights": weights,
        "adam": {moment: {name: np.zeros_like(w) for name, w in weights.items()} for moment in ("first", "second")},
        "rng": rng,
        "epoch": 0,
        "order": rng.permutation(images),
        "position": 0,
        "best_val_loss": float("inf"),
        "losses": np.zeros(steps),
    }


def advance(state: State, data: State, step: int) -> None:
    """One training step, in place."""
    picked = next_batch(state)
    images = data["images"][picked]
    noisy = images + NOISE * state["rng"].standard_normal(images.shape, dtype=np.float32)
    state["losses"][step], gradients = loss_and_gradients(state["weights"], noisy, data["labels"][picked])
    adam(state["weights"], state["adam"], gradients, step + 1)


def next_batch(state: State) -> np.ndarray:
    """Indices of the next training images; a new order is drawn when an epoch is over."""
    if state["position"] + BATCH > len(state["order"]):
        state["rng"].shuffle(state["order"])
        state["position"] = 0
        state["epoch"] += 1
    start = state["position"]
    state["position"] = start + BATCH
    picked: np.ndarray = state["order"][start : start + BATCH]
    return picked


def loss_and_gradients(weights: Weights, images: np.ndarray, labels: np.ndarray) -> tuple[float, Weights]:
    """Mean cross-entropy of a batch, and its gradient for every weight."""
    inputs = forward(weights, images)
    chances = softmax(inputs[-1])
    rows = np.arange(len(labels))
    loss = -float(np.log(chances[rows, labels] + 1e-12).mean())
    chances[rows, labels] -= 1
    slope = chances / np.float32(len(labels))
    gradients: Weights = {}
    for layer in reversed(range(len(WIDTHS) - 1)):
        gradients[f"w{layer}"] = inputs[layer].T @ slope
        gradients[f"b{layer}"] = slope.sum(axis=0)
        slope = (slope @ weights[f"w{layer}"].T) * (inputs[layer] > 0)
    return loss, gradients


def forward(weights: Weights, images: np.ndarray) -> list[np.ndarray]:
    """What goes into each layer, and the logits last."""
    inputs = [images]
    for layer in range(len(WIDTHS) - 1):
        out = inputs[-1] @ weights[f"w{layer}"] + weights[f"b{layer}"]
        inputs.append(np.maximum(out, 0) if layer < len(WIDTHS) - 2 else out)
    return inputs


def softmax(logits: np.ndarray) -> np.ndarray:
    """Chances of each class, row by row."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return chances


def adam(weights: Weights, moments: dict[str, Weights], gradients: Weights, count: int) -> None:
    """Update number ``count`` (from 1) of every weight and its two moments, in place."""
    rate = np.float32(RATE * np.sqrt(1 - DECAY_SECOND**count) / (1 - DECAY_FIRST**count))
    for name, gradient in gradients.items():
        first, second = moments["first"][name], moments["second"][name]
        first += np.float32(1 - DECAY_FIRST) * (gradient - first)
        second += np.float32(1 - DECAY_SECOND) * (gradient * gradient - second)
        weights[name] -= rate * first / (np.sqrt(second) + np.float32(1e-8))


def validate(state: State, data: State) -> dict[str, float]:
    """Loss and accuracy on the images kept from training; the best loss so far is noted in the state."""
    images, labels = data["images"][-VALIDATION:], data["labels"][-VALIDATION:]
    chances = softmax(forward(state["weights"], images)[-1])
    loss = -float(np.log(chances[np.arange(len(labels)), labels] + 1e-12).mean())
    state["best_val_loss"] = min(state["best_val_loss"], loss)
    return {"val_loss": loss, "val_accuracy": float((chances.argmax(axis=1) == labels).mean())}
