"""A program that ends in one of several ways while there is something to save: ``python exit_program.py WAY URL OPTIONS``.

The options, of the manager, are JSON. All of step 1 is written after the program's end has begun, and from then on the system
refuses threads: as Python 3.12.0 and 3.12.1 do, and later ones a little later.
"""

import atexit
import json
import sys
import threading
from typing import Any, NoReturn

import numpy as np

from ckptmgr import BackgroundSaver, CheckpointManager, StepInfo, TieredManager
from ckptmgr.saving import Prepared

PATIENCE_S = 60
STATE = {
    "model": {f"layers.{number}": np.full((64, 64), number, np.float32) for number in range(40)},
    "large": np.arange(6 << 20, dtype=np.float32),  # in several parts, and by several threads
    "step": 1,
}
ending = threading.Event()


def refuse_threads_from_the_end_on() -> None:
    shutdown = threading._shutdown  # type: ignore[attr-defined]

    def end() -> None:
        for name in ("_start_new_thread", "_start_joinable_thread"):  # up to 3.12, from 3.13 on
            if hasattr(threading, name):
                setattr(threading, name, refuse)
        ending.set()
        shutdown()

    threading._shutdown = end  # type: ignore[attr-defined]


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("can't create new thread at interpreter shutdown")


class LateManager(CheckpointManager):
    """Begins to write when the program has begun to end."""

    def complete(self, prepared: Prepared, **options: Any) -> StepInfo:
        assert ending.wait(PATIENCE_S)
        return super().complete(prepared, **options)


def save(url: str, options: dict[str, Any]) -> None:
    BackgroundSaver(LateManager(url, **options)).save(1, STATE)


def leave(url: str, options: dict[str, Any]) -> None:
    save(url, options)
    sys.exit(3)


def fail(url: str, options: dict[str, Any]) -> None:
    save(url, options)
    raise ValueError("the loss is NaN")


def copy(url: str, options: dict[str, Any]) -> None:
    near = options.pop("near")
    far = CheckpointManager(url, **options)
    tiers = TieredManager(CheckpointManager(near), far, upload=lambda _: ending.wait(PATIENCE_S))
    tiers.save(1, STATE)


def train_on(url: str, options: dict[str, Any]) -> None:
    """In a thread that goes on when the main one has come to its end: there pools take no work any more."""

    def train() -> None:
        threading.main_thread().join()
        BackgroundSaver(manager).save(1, STATE)

    manager = CheckpointManager(url, **options)
    threading.Thread(target=train).start()


def save_last(url: str, options: dict[str, Any]) -> None:
    atexit.register(lambda: manager.save(1, STATE))
    manager = CheckpointManager(url, **options)


WAYS = {each.__name__: each for each in (save, leave, fail, copy, train_on, save_last)}

if __name__ == "__main__":
    refuse_threads_from_the_end_on()
    WAYS[sys.argv[1]](sys.argv[2], json.loads(sys.argv[3]))
