"""The crc32c of a buffer by numpy alone, where there is no package that asks the processor for it.

The law: bytes that stand for a multiple of the polynomial change no crc. One such multiple has only four terms, so a stretch
of a message is deleted when it is xored into three places behind it, whole arrays at a time. What remains, a few
kilobytes, goes through tables.

Source: the crc as RFC 3720 has it. The multiple is x^6777 + x^484 + x^100 + 1; squaring it keeps it one, so x^8 or x^64
may stand for x, and the places are counted in bytes or in words of 8.
"""

import functools
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[np.uint8]
_Tables = npt.NDArray[np.uint32]  # n tables of 256 registers each: one for each of the n bytes of a row

_CASTAGNOLI: Final = 0x82F63B78  # bit-reversed: bit 31 is x^0
_ALL: Final = 0xFFFFFFFF
_PLAIN_NBYTES: Final = 1024  # under it, a loop over the bytes is the fastest

_SPAN, _NEAR, _FAR = 6777, 6777 - 484, 6777 - 100  # a deleted place counts again at these distances
_WORD: Final = 8
_BLOCK: Final = 16


def crc32c(buffer: Any, value: int = 0) -> int:
    """The crc32c (Castagnoli) of the buffer's bytes, going on from ``value``, that of the bytes before them.

    The buffer is only read, and never copied as a whole: this takes about 250 KB at most. The GIL is released for most of
    the time of a large one.

    Raises:
        ValueError: an array's memory is not C-contiguous.
        TypeError: this is no buffer.
    """
    data = _bytes(buffer)
    register = value ^ _ALL
    if data.size < _PLAIN_NBYTES:
        return _plain(data.tobytes(), register) ^ _ALL
    return _looked_up(_folded_by_bytes(_folded_by_words(data, register))) ^ _ALL


def _bytes(buffer: Any) -> _Bytes:
    """The buffer's own memory. ml_dtypes arrays are no buffers for Python, but their bytes are."""
    if not isinstance(buffer, np.ndarray):
        return np.frombuffer(buffer, np.uint8)
    if not buffer.flags.c_contiguous:
        raise ValueError("the array is not C-contiguous")
    return buffer.reshape(-1).view(np.uint8) if buffer.nbytes else np.empty(0, np.uint8)


def _plain(data: bytes, register: int) -> int:
    table = _plain_table()
    for byte in data:
        register = table[(register ^ byte) & 0xFF] ^ register >> 8
    return register


def _folded_by_words(data: _Bytes, register: int) -> _Bytes:
    """A new message of at most 105 KB that takes a register from 0 to where ``data`` takes ``register``."""
    pending = np.zeros(_SPAN * _WORD, np.uint8)  # what must still be xored into the bytes from here on
    # To start with a register is to start with 0 and the register's bytes xored into the first four.
    pending[:4] = np.frombuffer(register.to_bytes(4, "little"), np.uint8)
    step, overlap = _NEAR * _WORD, (_SPAN - _NEAR) * _WORD
    # The deleted words between zeros: three views of them, each moved by its distance.
    padded = np.zeros(overlap + step + overlap, np.uint8)
    deleted = padded[overlap : overlap + step]
    near, far, span = (padded[(_SPAN - place) * _WORD :][: pending.size] for place in (_NEAR, _FAR, _SPAN))
    head, start, end = pending[:step], pending[:overlap], pending[step:]
    position, last = 0, data.size - step - pending.size
    while position <= last:
        np.bitwise_xor(data[position : position + step], head, out=deleted)
        kept = end.copy()
        np.bitwise_xor(near, far, out=pending)
        np.bitwise_xor(pending, span, out=pending)
        np.bitwise_xor(start, kept, out=start)
        position += step
    rest = data[position:].copy()
    both = min(rest.size, pending.size)
    rest[:both] ^= pending[:both]
    return rest


def _folded_by_bytes(message: _Bytes) -> _Bytes:
    """The end of the message, at most 13 KB, changed so that it alone has the whole one's register. The message is used up."""
    while message.size >= _NEAR + _SPAN:
        deleted, message = message[:_NEAR], message[_NEAR:]
        for place in (0, _FAR - _NEAR, _SPAN - _NEAR):
            message[place : place + _NEAR] ^= deleted
    return message


def _looked_up(message: _Bytes) -> int:
    """The register after a message that starts with 0: of each block alone, then of two neighbours, and so on."""
    levels = (-(-message.size // _BLOCK) - 1).bit_length()
    blocks = np.zeros((1 << levels, _BLOCK), np.uint8)
    blocks.reshape(-1)[blocks.size - message.size :] = message  # zeros in front do not change a register that is 0
    registers = _meet(_block_tables(), blocks)
    for level in range(levels):
        pairs = registers.reshape(-1, 2)
        registers = _meet(_advance_tables(level), pairs[:, :1].view(np.uint8)) ^ pairs[:, 1]
    return int(registers[0])


def _meet(tables: _Tables, rows: _Bytes) -> _Tables:
    """For each row, the xor of what the tables have for its bytes."""
    found: _Tables = tables[0].take(rows[:, 0])
    for table, column in zip(tables[1:], rows.T[1:], strict=True):
        found ^= table.take(column)
    return found


@functools.cache
def _plain_table() -> list[int]:
    """The register after each byte, if it was 0 before."""
    table = []
    for register in range(256):
        for _ in range(8):
            register = register >> 1 ^ (_CASTAGNOLI if register & 1 else 0)
        table.append(register)
    return table


@functools.cache
def _block_tables() -> _Tables:
    """The register after a block that is 0 but for one byte, for each place of that byte."""
    table = np.array(_plain_table(), "<u4")
    tables = [table]
    for _ in range(_BLOCK - 1):
        tables.append(table[tables[-1] & 0xFF] ^ tables[-1] >> 8)
    return np.stack(tables[::-1])


@functools.cache
def _advance_tables(level: int) -> _Tables:
    """The register after ``2**level`` blocks of zeros, for each byte of the register before."""
    if level:
        half = _advance_tables(level - 1)
        return np.stack([_meet(half, table.reshape(-1, 1).view(np.uint8)) for table in half])
    return _block_tables()[:4]  # the same as the register's bytes xored into the first of the zeros
