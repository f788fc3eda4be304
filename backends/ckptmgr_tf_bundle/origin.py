"""Which file something is wrong with, and the errors that say so."""

from ckptmgr.backend import FileOrigin


class Origin(FileOrigin):
    """A file of a TensorFlow checkpoint."""

    __slots__ = ()
    form = "a valid TensorFlow checkpoint"
    subject = "tensor "
