"""How bytes get into memory that is not aligned to a cache line, as what `np.empty` gives: straight, or by a detour.

On some machines the kernel copies two to four times slower to such memory. Through aligned memory, which stays in cache, costs
a second copy, and is slower where the kernel does not mind. So both are tried, and the better one is taken.
"""

from math import inf

BOUNCE_NBYTES = 1 << 20  # below this, what is tried costs more than can be gained
_TRIES = 2  # of each: the first of a detour finds memory that was never touched
_GAIN = 0.8  # of the time straight: where the two hardly differ, the detour only takes room in the cache


class Detour:
    """One thread's choice, window by window: `begin` gives it, and `took` is told what came of it."""

    def __init__(self) -> None:
        self._best = [inf, inf]  # seconds a byte, straight and by the detour: the least, for a thread may have been interrupted
        self._tries = [0, 0]
        self._taken: bool | None = None

    def begin(self) -> bool:
        """Whether to take the detour for the next window."""
        straight, around = self._tries
        is_tried = straight >= _TRIES and around >= _TRIES
        self._taken = self._best[True] < _GAIN * self._best[False] if is_tried else around < straight
        return self._taken

    def took(self, seconds: float, nbytes: int) -> None:
        """So long the window took, with all that was done with it. Does nothing if there was no choice."""
        if self._taken is None:
            return
        self._best[self._taken] = min(self._best[self._taken], seconds / max(nbytes, 1))
        self._tries[self._taken] += 1
        self._taken = None
