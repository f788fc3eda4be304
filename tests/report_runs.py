"""Runs to be reported: an ordinary one, and one whose writer means harm."""

import itertools
import math
from pathlib import Path

import numpy as np

from ckptmgr import BackgroundSaver, CheckpointManager, KeepEvery, KeepLast

HARM = "</script><script>window.harmed = 1</script><img src=x onerror='window.harmed = 2'>"
STRANGE = "%{x}<b>&amp;\u202e損失 🙂 {{ 7 * 7 }} '\"` \x00\x1b[31m"


def ordinary(folder: Path, steps: int = 12) -> Path:
    """A run with collected, pinned and kept steps, four metrics and a few tensors."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(64, 32)).astype(np.float32)
    with CheckpointManager(folder, retention=KeepLast(4) | KeepEvery(500)) as manager:
        for step in range(100, 100 * steps + 1, 100):
            w += rng.normal(size=w.shape).astype(np.float32) * 0.05
            state = {
                "model": {"blocks": [{"w": w, "b": np.zeros(32)}], "embed": np.ones((100, 8), np.float16)},
                "epoch": step // 100,
            }
            loss = 2 * math.exp(-step / 500)
            metrics = {"val/loss": loss, "accuracy": 1 - loss / 3, "lr": 3e-4, "norm": math.nan if step == 1000 else 1.0}
            manager.save(step, state, metrics=metrics, metadata={"git": "3f9a1c2", "config": {"layers": 4}})
            if step == 300:
                manager.pin(step, "paper")
    return folder


def background(folder: Path, steps: int = 40) -> Path:
    """A run of incremental saves in the background, by a clock of its own; the first one was in the foreground."""
    rng = np.random.default_rng(0)
    now = itertools.accumulate(rng.exponential(0.2, size=100 * steps))
    state = {"base": {"w": np.zeros(1 << 17)}, "head": {"w": np.zeros(1 << 17)}}
    with CheckpointManager(folder, incremental=True) as manager:
        manager.save(0, state, metrics={"loss": 2.0})
        with BackgroundSaver(manager, clock=lambda: float(next(now))) as saver:
            for step in range(1, steps):
                state["head"]["w"][:] = step
                saver.save(100 * step, state, metrics={"loss": 2 / step})
    return folder


def hostile(folder: Path) -> Path:
    """A run in which every name and text is an attack or a nuisance."""
    with CheckpointManager(folder) as manager:
        for step in (1, 2):
            state = {
                HARM: np.full(3, step, np.float32),
                STRANGE.replace("\x00", ""): np.ones(2),
                "a": {"<i>": {"$x$": np.zeros(4)}},
            }
            metrics = {HARM: 1.0, STRANGE: math.nan, "": math.inf, "javascript:alert(1)": -1e308}
            manager.save(step, state, metrics=metrics, metadata={HARM: HARM, "nested": {STRANGE: [HARM]}, "long": "x" * 5000})
        manager.pin(1, "<u>pin</u>")
    return folder
