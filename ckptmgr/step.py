"""What is known of a committed step: the value that managers return and retention decides on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ckptmgr.timing import SaveStats

JSON = Any  # None, bool, int, float, str, list of JSON, dict of str to JSON


@dataclass(frozen=True, slots=True)
class StepInfo:
    """One step of a run. ``order`` is the order of saves: the largest is the latest.

    ``nbytes`` counts all files of the step, also those that it shares with others; ``created`` is an aware UTC datetime, for
    humans and time-based retention only; ``path`` is where the files lie (a local path or a URL). Listings share it while
    the step is as it was: do not change what is in ``metrics`` and ``metadata``. ``stats`` is how its save went, as far as that
    was known when it was committed; None if nothing is recorded, as of steps that were adopted or converted.

    ``is_foreign``: another tool wrote it into the run's folder, and it is no committed step. Then ``name`` is the stem of
    its files, ``path`` the place of that stem, and ``created`` when its files were last changed; attempt and run are empty, and
    its ``sequence`` is negative and puts it before all committed steps.
    """

    step: int
    attempt: str
    sequence: int
    run: str
    created: datetime
    backend: str
    nbytes: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    pins: frozenset[str] = frozenset()
    name: str = ""
    path: str = ""
    is_foreign: bool = False
    stats: SaveStats | None = None

    @property
    def order(self) -> tuple[int, int, str]:
        """Total order of saves: by sequence, then step, then attempt. Never by time or name."""
        return self.sequence, self.step, self.attempt
