"""Index files that lie: each is refused by name, at once, and without taking memory."""

import functools
import time

import bounds
import cramjam
import pytest

from ckptmgr.backend import crc32c
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr_tf_bundle.masking import mask
from ckptmgr_tf_bundle.origin import Origin
from ckptmgr_tf_bundle.table import MAGIC, decode

ORIGIN = Origin("model.index", "/runs/model.index")
HEADER = b"\x00\x00\x01h"
NEVER_ENDING = b"\x80" * 10 + b"\x01"
OVER_64_BITS = b"\xff" * 9 + b"\x02"
HUGEST = b"\xff" * 9 + b"\x01"  # 2**64 - 1


def varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    return bytes((number & 0x7F | 0x80,)) + varint(number >> 7)


def little(number: int) -> bytes:
    return number.to_bytes(4, "little")


def entry(shared: int, key: bytes, value: bytes = b"") -> bytes:
    return varint(shared) + varint(len(key)) + varint(len(value)) + key + value


def block(*entries: bytes) -> bytes:
    return b"".join(entries) + little(0) + little(1)


def sealed(stored: bytes, kind: int = 0) -> bytes:
    stored += bytes((kind,))
    return stored + little(mask(crc32c(stored)))


def snapped(content: bytes) -> bytes:
    return sealed(bytes(cramjam.snappy.compress_raw(content)), 1)


def footer(index: bytes, meta: bytes = b"\0\0") -> bytes:
    return (meta + index).ljust(40, b"\0") + MAGIC


def indexed(body: bytes, *handles: bytes) -> bytes:
    """A file whose index block has these values."""
    index = block(*(entry(0, b"%06d" % number, handle) for number, handle in enumerate(handles)))
    return body + sealed(index) + footer(varint(len(body)) + varint(len(index)))


def file(*blocks: bytes) -> bytes:
    """A file with these sealed data blocks."""
    body, handles = b"", []
    for each in blocks:
        handles.append(varint(len(body)) + varint(len(each) - 5))
        body += each
    return indexed(body, *handles)


def one(*entries: bytes) -> bytes:
    return file(sealed(block(*entries)))


cheap = functools.partial(bounds.cheap, seconds=1.0)
GOOD = one(HEADER)
DATA = sealed(block(HEADER))
GROWING = b"".join(entry(number, b"x") for number in range(0, 30_000))

BAD_FILES = {
    "nothing": (b"", "0 bytes are too few"),
    "less than a footer": (GOOD[-47:], "47 bytes are too few"),
    "a footer alone": (GOOD[-48:], "the file has 48 bytes"),
    "another mark": (GOOD[:-1] + b"\xda", "does not end with the mark"),
    "a footer's number without an end": (DATA + footer(NEVER_ENDING), "without an end"),
    "a footer's number that ends in the mark": (DATA + b"\x80" * 40 + MAGIC, "without an end"),
    "a footer's number of over 64 bits": (DATA + footer(b"\0" + OVER_64_BITS), "over 64 bits"),
    "a metaindex handle without an end": (DATA + footer(b"", NEVER_ENDING), "without an end"),
    "an index past the end": (DATA + footer(varint(1) + varint(len(DATA) - 5)), "a block of 12 bytes at byte 1"),
    "an index at the very end": (DATA + footer(HUGEST + b"\0"), "18446744073709551615"),
    "an index that wraps around": (DATA + footer(HUGEST + varint(13)), "a block of 13 bytes at byte 18446744073709551615"),
    "an index into the footer": (bytes(20) + footer(varint(20) + varint(8)), "a block of 8 bytes at byte 20"),
    "a block past the end": (indexed(DATA, varint(0) + varint(10**6)), "a block of 1000000 bytes"),
    "a block that wraps around": (indexed(DATA, varint(2**64 - 12) + varint(12)), "18446744073709551604"),
    "a handle without an end": (indexed(DATA, NEVER_ENDING), "without an end"),
    "a handle without a size": (indexed(DATA, b"\0"), "without an end"),
    "a handle of nothing": (indexed(DATA, b""), "without an end"),
    "one block twice": (indexed(DATA, b"\x00\x0c", b"\x00\x0c"), "byte 0 starts before the end of the block before it, 17"),
    "a block inside the one before": (indexed(DATA + DATA, b"\x00\x0c", b"\x10\x0c"), "byte 16 starts before"),
    "blocks in another order": (indexed(DATA + DATA, b"\x11\x0c", b"\x00\x0c"), "byte 0 starts before"),
    "another checksum": (file(DATA[:-1] + bytes((DATA[-1] ^ 1,))), "checksum of its block at byte 0"),
    "a checksum that is not masked": (
        file(block(HEADER) + b"\0" + little(crc32c(block(HEADER) + b"\0"))),
        "checksum of its block",
    ),
    "a type outside the checksum": (file(DATA[:12] + b"\x01" + DATA[13:]), "checksum of its block"),
    "an unknown type": (file(sealed(block(HEADER), 2)), "unknown way, type 2"),
    "a block too small for its count": (file(sealed(b"\0\0\0")), "a block of 3 bytes"),
    "more restart points than bytes": (file(sealed(little(0) + little(2))), "8 bytes with 2 restart points"),
    "billions of restart points": (file(sealed(HEADER + little(2**32 - 1))), "4294967295 restart points"),
    "an entry's number without an end": (one(HEADER, NEVER_ENDING + b"\0\0"), "without an end"),
    "an entry's number of over 64 bits": (one(HEADER, OVER_64_BITS + b"\0\0"), "over 64 bits"),
    "an entry's number that ends outside": (one(HEADER, b"\0\0\x80"), "without an end"),
    "a key past the block": (one(HEADER, b"\x00\x0a\x00abc"), "leaves its block, after key b''"),
    "a value past the block": (one(HEADER, b"\x00\x01\x01a"), "leaves its block"),
    "a value past everything": (one(HEADER, b"\x00\x01" + HUGEST + b"a"), "leaves its block"),
    "an entry of which only one byte is there": (one(HEADER, b"\x00"), "leaves its block"),
    "more shared than there is": (one(HEADER, entry(0, b"ab"), entry(3, b"c")), "leaves its block, after key b'ab'"),
    "a first key that shares": (one(entry(1, b"a")), "leaves its block"),
    "a block that shares with the one before": (file(DATA, sealed(block(entry(1, b"a")))), "leaves its block"),
    "no entry": (file(sealed(block())), "header is missing"),
    "no block": (file(), "header is missing"),
    "no header": (one(entry(0, b"a")), "header is missing"),
    "a header that is not first": (one(entry(0, b"a"), entry(0, b"", b"h")), "header is missing"),
    "two headers": (one(HEADER, HEADER), "out of order: b'' comes after b''"),
    "a key twice": (one(HEADER, entry(0, b"a"), entry(1, b"")), "out of order: b'a' comes after b'a'"),
    "keys that fall": (one(HEADER, entry(0, b"\xff"), entry(0, b"\x7f")), "out of order"),
    "keys that fall from block to block": (file(sealed(block(HEADER, entry(0, b"b"))), sealed(block(entry(0, b"a")))), "order"),
    "keys that grow and grow": (one(HEADER, GROWING), "grows too much"),
    "an index whose keys grow and grow": (DATA + sealed(block(GROWING)) + footer(varint(17) + varint(len(GROWING) + 8)), "grows"),
    "nothing in snappy": (file(sealed(b"", 1)), "without an end"),
    "snappy of an empty block": (file(snapped(b"")), "a block of 0 bytes"),
    "snappy that claims terabytes": (file(sealed(varint(2**40) + b"\x00a", 1)), "claims to hold 1099511627776"),
    "snappy that claims just too much": (file(sealed(varint(43) + b"\x00a", 1)), "3 bytes that claims to hold 43"),
    "snappy that holds less than it claims": (file(sealed(varint(5) + b"\x00a", 1)), "snappy refuses"),
    "snappy that holds more than it claims": (file(sealed(varint(1) + b"\x04ab", 1)), "snappy refuses"),
    "snappy that copies from offset 0": (file(sealed(varint(5) + b"\x00a\x01\x00", 1)), "snappy refuses"),
    "snappy that copies from before the start": (file(sealed(varint(5) + b"\x00a\x01\x09", 1)), "snappy refuses"),
    "snappy whose literal is cut": (file(sealed(varint(5) + b"\x10a", 1)), "snappy refuses"),
    "snappy's claim without an end": (file(sealed(NEVER_ENDING, 1)), "without an end"),
    "plain bytes called snappy": (file(sealed(b"\x08" + bytes(8), 1)), "snappy refuses"),
    "snappy of many tiny entries": (file(snapped(block(HEADER, entry(0, b"a") * 500_000))), "grows too much"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_index_is_refused(what: str) -> None:
    data, problem = BAD_FILES[what]

    started = time.process_time()
    with pytest.raises(CorruptCheckpointError, match=problem) as error:
        decode(data, ORIGIN)
    assert time.process_time() - started < 1  # without tracing, which takes several times as long
    with cheap(seconds=5), pytest.raises(CorruptCheckpointError, match=problem):
        decode(data, ORIGIN)

    assert error.value.file == "model.index"
    assert "/runs/model.index" in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_long_key_is_cut_in_the_message() -> None:
    with pytest.raises(CorruptCheckpointError, match="out of order: b'xxx") as error:
        decode(one(HEADER, entry(0, b"x" * 5000), entry(5000, b"")), ORIGIN)

    assert len(str(error.value)) < 1000


def test_what_snappy_packs_best_is_accepted() -> None:
    values = [bytes(1000)] * 100

    found = decode(file(snapped(block(HEADER, *(entry(0, b"%03d" % n, value) for n, value in enumerate(values))))), ORIGIN)

    assert [value for _, value in found[1:]] == values


ACCEPTED = {
    "bytes after a handle": indexed(DATA, b"\x00\x0cmore"),
    "bytes between the blocks": indexed(b"gap" + DATA + b"gap", b"\x03\x0c"),
    "a metaindex that is nowhere": DATA + sealed(block(entry(0, b"", b"\x00\x0c"))) + footer(b"\x11\x0d", HUGEST * 2),
    "a block without restart points": file(sealed(HEADER + little(0))),
    "restart points that point nowhere": file(sealed(HEADER + little(99) + little(77) + little(2))),
    "an empty block": file(DATA, sealed(block())),
    "a block that is nothing but a count of 0": file(DATA, sealed(little(0))),
    "an empty block before the header": file(sealed(block()), DATA),
    "a number longer than it needs to be": one(b"\x80\x00\x00\x81\x80\x80\x00h"),
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_what_is_only_odd_is_accepted(what: str) -> None:
    assert decode(ACCEPTED[what], ORIGIN) == [(b"", b"h")]


def test_every_entry_may_have_its_own_block() -> None:
    blocks = [DATA, *(sealed(block(entry(0, b"%03d" % number, b"v"))) for number in range(300))]

    found = decode(file(*blocks), ORIGIN)

    assert found == [(b"", b"h"), *((b"%03d" % number, b"v") for number in range(300))]


def test_raw_and_compressed_blocks_may_be_in_one_file() -> None:
    found = decode(file(DATA, snapped(block(entry(0, b"a", b"1"))), sealed(block(entry(0, b"b", b"2")))), ORIGIN)

    assert found == [(b"", b"h"), (b"a", b"1"), (b"b", b"2")]


def test_a_block_may_have_a_single_restart_point() -> None:
    shared = [entry(90, b"%010d" % number, bytes(20)) for number in range(5000)]

    found = decode(one(HEADER, entry(0, b"p" * 90), *shared), ORIGIN)

    assert found[-1] == (b"p" * 90 + b"0000004999", bytes(20))


def test_a_small_table_may_have_long_keys_that_share_nearly_all() -> None:
    shared = [entry(5000, b"%03d" % number) for number in range(100)]

    found = decode(one(HEADER, entry(0, b"p" * 5000), *shared), ORIGIN)

    assert found[-1] == (b"p" * 5000 + b"099", b"")
