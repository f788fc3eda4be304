"""Index files: those of TensorFlow byte for byte, and every rule by which they are laid out."""

import hashlib
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmgr.errors import MissingDependencyError
from ckptmgr_tf_bundle.origin import Origin
from ckptmgr_tf_bundle.table import decode, encode

GOLDEN = Path(__file__).parents[1] / "golden" / "tf_bundle"
INDEXES = sorted(path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*.index"))
BY_TENSORFLOW = [name for name in INDEXES if not name.startswith("crafted/")]
ORIGIN = Origin("model.index", "/runs/model.index")
HEADER = (b"", b"\x08\x01\x1a\x02\x08\x01")
EMPTY_BLOCK = bytes.fromhex("00000000 01000000")
BLOCK_NBYTES = 262_144
LARGE = 524_288

keys = st.lists(st.sampled_from([b"a", b"b", b"/", b"\x00", b"\xff", b"layer_with_weights-", b"x" * 200]), min_size=1, max_size=6)
values = st.one_of(st.binary(max_size=40), st.sampled_from([127, 128, 16_384, BLOCK_NBYTES, LARGE]).map(bytes))


def decoded(path: str) -> list[tuple[bytes, bytes]]:
    return decode((GOLDEN / path).read_bytes(), ORIGIN)


def varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while data[at] >= 0x80:
        number, shift, at = number | (data[at] & 0x7F) << shift, shift + 7, at + 1
    return number | data[at] << shift, at + 1


def index_entries(file: bytes) -> list[tuple[bytes, int, int]]:
    """Key, offset and size of every entry of the index block."""
    at = len(file) - 48
    for _ in range(2):
        _, at = varint(file, at)
    start, at = varint(file, at)
    nbytes, _ = varint(file, at)
    found, at = [], start
    stop = start + nbytes - 4 - 4 * int.from_bytes(file[start + nbytes - 4 : start + nbytes], "little")
    while at < stop:
        assert file[at] == 0  # every entry is a restart point
        unshared, at = varint(file, at + 1)
        _, at = varint(file, at)
        key, at = file[at : at + unshared], at + unshared
        offset, at = varint(file, at)
        size, at = varint(file, at)
        found.append((key, offset, size))
    return found


def block_sizes(*items: tuple[bytes, bytes]) -> list[int]:
    return [nbytes for _, _, nbytes in index_entries(encode([HEADER, *items]))]


def separators(*items: tuple[bytes, bytes]) -> list[bytes]:
    return [key for key, _, _ in index_entries(encode([HEADER, *items]))]


class TestGoldenFiles:
    @pytest.mark.parametrize("path", BY_TENSORFLOW)
    def test_encoding_gives_the_bytes_that_tensorflow_wrote(self, path: str) -> None:
        data = (GOLDEN / path).read_bytes()

        assert encode(decode(data, ORIGIN)) == data

    @pytest.mark.parametrize("path", INDEXES)
    def test_the_header_comes_first_and_every_key_after_the_one_before_it(self, path: str) -> None:
        found = [key for key, _ in decoded(path)]

        assert found[0] == b""
        assert found == sorted(set(found))

    def test_one_shard_has_the_plainest_header(self) -> None:
        assert decoded("manager/ckpt-3.index")[0] == HEADER

    @pytest.mark.parametrize("path", ["manager/ckpt-5", "shapes/shapes", "strings/strings", "multishard/ms"])
    def test_keys_are_those_that_tensorflow_lists(self, path: str) -> None:
        names = json.loads((GOLDEN / "expected" / path.split("/")[0]).with_suffix(".json").read_text())["tensors"]

        found = [key.decode() for key, _ in decoded(f"{path}.index")]

        assert found == ["", *sorted(names)]

    def test_many_keys_are_those_that_were_saved(self) -> None:
        names = sorted(hashlib.sha256(str(number).encode()).hexdigest() for number in range(3600))

        assert [key.decode() for key, _ in decoded("manykeys/many.index")] == ["", *names]

    def test_an_index_of_two_blocks_is_read_wholly(self) -> None:
        assert len(index_entries((GOLDEN / "manykeys" / "many.index").read_bytes())) == 2
        assert len(decoded("manykeys/many.index")) == 3601

    def test_a_compressed_index_has_the_tensors_of_its_plain_twin(self) -> None:
        plain, compressed = decoded("crafted/aligned64.index"), decoded("crafted/snappy.index")

        assert [key for key, _ in compressed] == [key for key, _ in plain]

    def test_a_compressed_index_without_cramjam_names_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cramjam", None)

        with pytest.raises(MissingDependencyError, match=r"pip install 'ckptmgr\[tf-bundle\]'"):
            decoded("crafted/snappy.index")

    def test_a_plain_index_needs_no_cramjam(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cramjam", None)

        assert len(decoded("manykeys/many.index")) == 3601


@given(st.dictionaries(keys.map(b"".join), values, max_size=60))
def test_decoding_gives_back_what_was_encoded(entries: dict[bytes, bytes]) -> None:
    items = sorted({**entries, b"": b"header"}.items())

    assert decode(encode(items), ORIGIN) == items


def test_the_smallest_table_is_laid_out_as_the_format_says() -> None:
    file = encode([(b"", b"v")])

    assert file[:4] == b"\x00\x00\x01v"  # shared, unshared, length of the value, no key, the value
    assert file[4:13] == EMPTY_BLOCK + b"\x00"  # one restart point, at 0; a raw block
    assert file[17:26] == EMPTY_BLOCK + b"\x00"  # the metaindex
    assert file[30:35] == b"\x00\x00\x02\x00\x0c"  # the index: the block at 0 has 12 bytes
    assert file[48:52] == b"\x11\x08\x1e\x0d"  # the footer: metaindex at 17 of 8 bytes, index at 30 of 13
    assert file[52:88] == bytes(36)
    assert file[88:] == bytes.fromhex("57fb808b247547db")


def test_an_empty_block_has_one_restart_point() -> None:
    file = encode([HEADER])

    # The footer's first handle is the metaindex, which is always empty.
    assert file[file[-48] : file[-48] + file[-47]] == EMPTY_BLOCK


def test_every_sixteenth_key_is_written_whole() -> None:
    items = [HEADER] + [(b"key%03d" % number, b"") for number in range(40)]

    file = encode(items)

    assert [b"key%03d" % number in file for number in (14, 15, 16, 30, 31, 32)] == [False, True, False, False, True, False]


def test_a_key_between_tells_only_what_differs() -> None:
    file = encode([HEADER, (b"layer/bias", b"1"), (b"layer/kernel", b"2")])

    assert b"\x06\x06\x01kernel2" in file


def test_keys_that_are_prefixes_of_each_other_share_all_of_the_shorter() -> None:
    assert b"\x01\x01\x00b\x02\x01\x00c" in encode([HEADER, (b"a", b""), (b"ab", b""), (b"abc", b"")])


@pytest.mark.parametrize(("nbytes", "blocks"), [(262_120, [262_147]), (262_121, [262_144, 12])])
def test_a_block_is_closed_once_it_has_its_size(nbytes: int, blocks: list[int]) -> None:
    # 9 bytes of the header, 6 before the value, 8 after it; then 4 of the last entry, where there is room.
    assert block_sizes((b"a", bytes(nbytes)), (b"b", b"")) == blocks


@pytest.mark.parametrize(("nbytes", "blocks"), [(LARGE - 2, 1), (LARGE - 1, 2)])
def test_a_large_entry_first_closes_the_open_block(nbytes: int, blocks: int) -> None:
    assert len(block_sizes((b"a", bytes(nbytes)))) == blocks


def test_a_large_first_entry_closes_nothing() -> None:
    (only,) = index_entries(encode([(b"", bytes(LARGE))]))

    assert only[1] == 0


@pytest.mark.parametrize(
    ("last", "following", "separator"),
    [
        (b"layer_1/kernel", b"layer_4", b"layer_2"),  # its first differing byte plus one, cut there
        (b"layer_1/kernel", b"layer_2", b"layer_1/kernel"),  # plus one would not be below the next key
        (b"layer", b"layer_2", b"layer"),  # a prefix of the next key
        (b"a\xfe", b"a\xff", b"a\xfe"),
        (b"a\x7fz", b"a\xff", b"a\x80"),
    ],
)
def test_a_block_is_told_from_the_next_by_the_shortest_separator(last: bytes, following: bytes, separator: bytes) -> None:
    assert separators((last, bytes(BLOCK_NBYTES)), (following, b""))[0] == separator


@pytest.mark.parametrize(
    ("last", "successor"), [(b"weights", b"x"), (b"\xffab", b"\xffb"), (b"\xff\xff", b"\xff\xff"), (b"\xfe\xff", b"\xff")]
)
def test_the_last_block_ends_at_the_shortest_successor(last: bytes, successor: bytes) -> None:
    assert separators((last, b"")) == [successor]


def test_a_table_with_the_header_alone_ends_at_the_empty_key() -> None:
    assert separators() == [b""]


@pytest.mark.parametrize(
    "items",
    [
        [],
        [(b"a", b"")],
        [HEADER, HEADER],
        [HEADER, (b"b", b""), (b"a", b"")],
        [HEADER, (b"a", b""), (b"a", b"")],
        [HEADER, (b"\xff", b""), (b"\x7f", b"")],
    ],
    ids=["nothing", "no header", "two headers", "falling", "a key twice", "falling as unsigned bytes"],
)
def test_what_no_table_can_hold_is_not_encoded(items: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(ValueError, match=r"cannot come after|needs the header"):
        encode(items)


def test_items_are_taken_one_by_one() -> None:
    assert encode(iter([HEADER, (b"a", b"1")])) == encode([HEADER, (b"a", b"1")])
