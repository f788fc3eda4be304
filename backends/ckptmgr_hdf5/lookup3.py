"""The checksum of the newer HDF5 structures.

Source: Bob Jenkins, lookup3.c, ``hashlittle`` with initial value 0.
"""

import struct

_MASK = 0xFFFFFFFF


def lookup3(data: bytes) -> int:
    """The 32-bit hash of the bytes."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    if not data:
        return c
    rounds = -(-len(data) // 12)
    words = struct.unpack(f"<{3 * rounds}I", data.ljust(12 * rounds, b"\0"))
    for at in range(0, 3 * rounds - 3, 3):
        a = (a + words[at]) & _MASK
        b = (b + words[at + 1]) & _MASK
        c = (c + words[at + 2]) & _MASK
        a = ((a - c) ^ (c << 4 | c >> 28)) & _MASK
        c = (c + b) & _MASK
        b = ((b - a) ^ (a << 6 | a >> 26)) & _MASK
        a = (a + c) & _MASK
        c = ((c - b) ^ (b << 8 | b >> 24)) & _MASK
        b = (b + a) & _MASK
        a = ((a - c) ^ (c << 16 | c >> 16)) & _MASK
        c = (c + b) & _MASK
        b = ((b - a) ^ (a << 19 | a >> 13)) & _MASK
        a = (a + c) & _MASK
        c = ((c - b) ^ (b << 4 | b >> 28)) & _MASK
        b = (b + a) & _MASK
    return _final((a + words[-3]) & _MASK, (b + words[-2]) & _MASK, (c + words[-1]) & _MASK)


def _final(a: int, b: int, c: int) -> int:
    c = ((c ^ b) - (b << 14 | b >> 18)) & _MASK
    a = ((a ^ c) - (c << 11 | c >> 21)) & _MASK
    b = ((b ^ a) - (a << 25 | a >> 7)) & _MASK
    c = ((c ^ b) - (b << 16 | b >> 16)) & _MASK
    a = ((a ^ c) - (c << 4 | c >> 28)) & _MASK
    b = ((b ^ a) - (a << 14 | a >> 18)) & _MASK
    return ((c ^ b) - (b << 24 | b >> 8)) & _MASK
