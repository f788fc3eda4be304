"""Processes that save one checkpoint together."""

from typing import Protocol


class Group(Protocol):
    """The whole distributed dependency: who am I, how many are we, and one collective.

    A rank that fails still takes part in `all_gather`, with its error in the record, so that every rank raises
    the same error and nobody hangs.
    """

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...

    def all_gather(self, record: bytes) -> list[bytes]:
        """Every rank's record, in rank order. All ranks call this, the same number of times."""


class Solo:
    """One process alone: the default group."""

    rank = 0
    size = 1

    def all_gather(self, record: bytes) -> list[bytes]:
        """The one record there is."""
        return [record]
