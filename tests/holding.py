"""Managers whose saves wait, fail or take their time when they come to write."""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ckptmgr import CheckpointManager, StepInfo
from ckptmgr.saving import Prepared
from ckptmgr.storage import Buffer, Stored

PATIENCE_S = 60


class HeldManager(CheckpointManager):
    """Begins to write only when `go` is set, and raises the error of ``failing`` for a step that stands there."""

    def __init__(self, url: str | Path, **options: Any) -> None:
        super().__init__(url, **options)
        self.begun, self.go = threading.Event(), threading.Event()
        self.failing: dict[int, BaseException] = {}

    def complete(self, prepared: Prepared, **options: Any) -> StepInfo:
        self.begun.set()
        assert self.go.wait(PATIENCE_S)
        if prepared.step in self.failing:
            raise self.failing.pop(prepared.step)
        return super().complete(prepared, **options)


class ThrottledStore:
    """A store of small windows that takes its time between being given a window and reading it."""

    window_nbytes = 1 << 14

    def __init__(self, inner: Any, seconds: float) -> None:
        self.inner, self.seconds = inner, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def put(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        stored: Stored = self.inner.put(key, self._slowed(windows), nbytes)
        return stored

    def _slowed(self, windows: Iterable[Sequence[Buffer]]) -> Iterator[Sequence[Buffer]]:
        for window in windows:
            time.sleep(self.seconds)
            yield window
