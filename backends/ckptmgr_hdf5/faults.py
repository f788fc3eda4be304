"""What can be wrong with bytes, said where the object they belong to is not known yet; `parsing` adds file and path."""


class Damaged(Exception):
    """No HDF5 library writes such bytes."""


class Refused(Exception):
    """What is read leads out of the file, or to a name that is not the object's own."""


class Unknown(Exception):
    """A structure that this parser does not know; HDF5 itself may."""
