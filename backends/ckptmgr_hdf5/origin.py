"""Which file something is wrong with, and the errors that say so."""

from ckptmgr.backend import FileOrigin


class Origin(FileOrigin):
    """An HDF5 file."""

    __slots__ = ()
    form = "a valid HDF5 file"
