"""How a save went: what happened when, in seconds from its call, and what it moved.

The law: it is for people, and nothing is decided by it. What a file says of it is taken where it is such a number, and else it
is as if nothing were said.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

MOST_S = 366 * 86_400.0  # nobody waits longer for one save
LEAST_S = 1e-6  # what is recorded is no finer
MOST_NBYTES = 2**63 - 1
_KEPT = ("blocked", "staged", "begun", "written")  # known when the manifest is made


@dataclass(frozen=True, slots=True)
class SaveStats:
    """How a save went, in seconds from the call of `save` on; None is what has not happened (yet), or is not recorded.

    ``blocked``: until the call returned; None of a save that was not made in the background, which returns after all of this.
    ``staged``: until the state was copied; None likewise. ``begun``: until it was begun to be written, which is after earlier
    saves. ``written``: until its files were durable. ``committed``: until the step was there, and retention had been applied; it
    is in no manifest. ``nbytes``: of the state's tensors. ``reused``: of the files that an incremental save has not written.

    The clock runs on while the process is stopped. In a group they are those of the process that commits.
    """

    nbytes: int = 0
    blocked: float | None = None
    staged: float | None = None
    written: float | None = None
    committed: float | None = None
    begun: float | None = None
    reused: int = 0

    @property
    def blocking(self) -> float | None:
        """Seconds that whoever called `save` was kept, at least: of a save that was not in the background, until ``written``."""
        return self.written if self.blocked is None else self.blocked

    @property
    def writing(self) -> float | None:
        """Seconds from ``begun`` to ``written``."""
        return None if self.begun is None or self.written is None or self.written < self.begun else self.written - self.begun

    def throughput(self, nbytes: int) -> float | None:
        """Bytes a second while it was written, where all files of the step have ``nbytes``; None if it cannot be told."""
        sent = nbytes - self.reused
        return sent / self.writing if self.writing is not None and self.writing >= LEAST_S and sent > 0 else None

    def to_json(self) -> dict[str, Any]:
        """What a manifest holds of it: numbers that `from_json` takes, seconds to the microsecond."""
        times = {moment: _seconds(getattr(self, moment)) for moment in _KEPT}
        return {
            "nbytes": _count(self.nbytes),
            "reused": _count(self.reused),
            **{moment: round(seconds, 6) for moment, seconds in times.items() if seconds is not None},
        }

    @classmethod
    def from_json(cls, value: Any) -> Self | None:
        """What a manifest tells; None if that is not at least when the files were written."""
        if type(value) is not dict:
            return None
        times = {moment: _seconds(value.get(moment)) for moment in _KEPT}
        if times["written"] is None:
            return None
        return cls(nbytes=_count(value.get("nbytes")), reused=_count(value.get("reused")), **times)


class Timing:
    """Takes down what happens in one save. Any thread may."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, started: float | None = None) -> None:
        self.nbytes = self.reused = 0
        self.moments: dict[str, float] = {}
        self._clock = clock
        self._started = clock() if started is None else started

    def reached(self, moment: str) -> float:
        """Notes that something has happened; gives the seconds since the call."""
        seconds = self.moments[moment] = self._clock() - self._started
        return seconds

    @property
    def stats(self) -> SaveStats:
        """Sizes and times so far."""
        return SaveStats(nbytes=self.nbytes, reused=self.reused, **self.moments)


def _seconds(value: Any) -> float | None:
    # Of JSON: true is no number, and of NaN no comparison holds.
    return float(value) if type(value) in (int, float) and 0 <= value <= MOST_S else None


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value <= MOST_NBYTES else 0
