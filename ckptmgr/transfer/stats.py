"""How much a transfer moved and where its time went."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]  # bytes done, bytes in all; called about once a window


@dataclass(frozen=True, slots=True)
class Stats:
    """Bytes moved, seconds from start to end, and seconds of each phase.

    Phases of different threads overlap, so their sum may be more than ``seconds``. A write has ``"stage"`` (tensors
    brought to the host and into raw order), ``"write"`` (the store, until the files are durable) and ``"checksum"``;
    a read has ``"plan"``, ``"read"`` and ``"checksum"`` (and what cannot be read straight into its place).
    """

    nbytes: int
    seconds: float
    phases: Mapping[str, float]


class Tally:
    """Bytes and seconds, counted by any thread. The thread that made the tally is the one that tells the progress."""

    def __init__(self, progress: Progress | None, total: int, *phases: str) -> None:
        self.done = 0
        self.total = total
        self.phases = dict.fromkeys(phases, 0.0)
        self._progress = progress
        self._owner = threading.get_ident()
        self._lock = threading.Lock()

    def add(self, nbytes: int, **seconds: float) -> None:
        """Adds to the bytes done and to the seconds of phases."""
        with self._lock:
            self.done = min(self.done + nbytes, self.total)  # gaps between small tensors are not counted
            for phase, value in seconds.items():
                self.phases[phase] += value
        if self._progress is not None and threading.get_ident() == self._owner:
            self._progress(self.done, self.total)
