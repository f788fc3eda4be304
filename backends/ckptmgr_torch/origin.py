"""Which file something is wrong with, and the errors that say so."""

from ckptmgr.backend import FileOrigin


class Damaged(Exception):
    """Nobody's pickler writes such bytes; `Origin` says where they are."""


class Refused(Exception):
    """What would need code, or values that this library does not make."""


class Origin(FileOrigin):
    """A file of a PyTorch checkpoint."""

    __slots__ = ()
    form = "a valid PyTorch checkpoint"
