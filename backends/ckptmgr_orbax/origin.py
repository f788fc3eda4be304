"""Which file something is wrong with, and the errors that say so."""

from ckptmgr.backend import FileOrigin


class Origin(FileOrigin):
    """A file or folder of an Orbax checkpoint."""

    __slots__ = ()
    form = "a valid Orbax checkpoint"
