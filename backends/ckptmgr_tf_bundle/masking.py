"""TensorFlow stores a crc32c rotated and shifted, so that the checksum of bytes that hold checksums is not degenerate.

Source: LevelDB's crc32c.h, function Mask.
"""

_DELTA = 0xA282EAD8


def mask(crc: int) -> int:
    """A crc32c as it is stored."""
    return ((crc >> 15 | crc << 17) + _DELTA) & 0xFFFFFFFF


def unmask(stored: int) -> int:
    """The crc32c of a stored value."""
    rotated = (stored - _DELTA) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
