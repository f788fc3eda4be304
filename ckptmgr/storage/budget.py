"""How many bytes may be on their way at once, over all files and threads that share a budget.

The law: what is out is never more than the budget, and a share that has ended never counts, however it ended.
"""

import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

_PATIENCE_S = 0.1  # until it is looked again for room of which nobody told: a bell can be lost to an interrupt


class Share:
    """Bytes of a budget that somebody holds until `end`, which may be called in any thread, and again."""

    def __init__(self, budget: "Budget", nbytes: int) -> None:
        self.nbytes = nbytes
        self._budget = budget
        self._views: dict[int, weakref.ref[memoryview]] = {}

    def end(self) -> None:
        """Gives the bytes back."""
        self._budget.take_back(self)

    def end_with(self, views: Sequence[memoryview]) -> None:
        """Ends when the last of these is let go, by the client that sends them: it holds them as long as it may need them."""
        held = [weakref.ref(view, self._let_go) for view in views]
        self._views = {id(each): each for each in held}

    def _let_go(self, view: "weakref.ref[memoryview]") -> None:
        self._views.pop(id(view), None)
        if not self._views:
            self.end()


class Budget:
    """``nbytes`` that are shared. Whoever wants more than all gets all."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._out: dict[int, Share] = {}
        self._bell: queue.SimpleQueue[None] = (
            queue.SimpleQueue()
        )  # may be rung while it is being rung: the last view is let go anywhere
        self._turn = threading.Lock()

    def take(self, nbytes: int) -> Share:
        """A share of that size, when there is room for it; those who wait get theirs one after another."""
        share = Share(self, min(nbytes, self.nbytes))
        with self._turn:
            while sum(each.nbytes for each in list(self._out.values())) + share.nbytes > self.nbytes:
                with suppress(queue.Empty):
                    self._bell.get(timeout=_PATIENCE_S)
            self._out[id(share)] = share
        return share

    def take_back(self, share: Share) -> None:
        """Ends a share."""
        if self._out.pop(id(share), None) is not None:
            self._bell.put(None)

    @contextmanager
    def held(self, nbytes: int) -> Iterator[None]:
        """A share for as long as the block lasts."""
        share = self.take(nbytes)
        try:
            yield
        finally:
            share.end()
