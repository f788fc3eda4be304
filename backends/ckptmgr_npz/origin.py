"""Which file something is wrong with, and the errors that say so."""

from ckptmgr.backend import FileOrigin


class Origin(FileOrigin):
    """An ``.npz`` file."""

    __slots__ = ()
    form = "a valid .npz file"
