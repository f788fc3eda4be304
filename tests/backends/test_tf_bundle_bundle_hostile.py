"""Bundles that lie or are damaged: refused by file and key, at once, without taking memory; and only what is damaged."""

import functools
import random
import shutil
import traceback
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import bounds
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import MemoryStore
from tf_bundles import DATA, GOLDEN, ORIGIN, opened, raw, sha256, sliced, write, write_arrays, write_one

from ckptmgr.backend import Box, Folder, crc32c
from ckptmgr.errors import CheckpointError, CorruptCheckpointError, UnsupportedTensorError
from ckptmgr_tf_bundle import table
from ckptmgr_tf_bundle.bundle import Bundle, open_bundle
from ckptmgr_tf_bundle.entry import build_entry, build_header, build_slices
from ckptmgr_tf_bundle.slices import slice_key

SMALL = ["dtypes/all", "strings/strings", "sliced/three_shards", "variant/iter-1", "crafted/big_endian", "multishard/ms"]
GOOD = build_entry(4, (2,), 0, 0, 2, crc32c(b"ab"))
BROKEN = build_entry(0, (2,), 0, 0, 2, 0)  # of no dtype


cheap = functools.partial(bounds.cheap, seconds=1.0)


def asks(bundle: Bundle) -> list[Callable[[str], object]]:
    return [bundle.specs.__getitem__, bundle.extents, bundle.read, bundle.stored]


def refused(bundle: Bundle, key: str, problem: str, file: str = DATA) -> None:
    """Asking for where a tensor is or for its values is refused, with file and key, cheaply; its spec is known."""
    assert bundle.specs[key]
    for ask in (bundle.extents, bundle.read):
        with cheap(seconds=5), pytest.raises(CorruptCheckpointError, match=problem) as caught:
            ask(key)
        assert (caught.value.file, caught.value.tensor) == (file, key)
        assert file in str(caught.value)


def test_a_broken_entry_is_listed_and_refused_and_the_others_are_read(tmp_path: Path) -> None:
    bundle = write(tmp_path, {b"a": GOOD, b"b": BROKEN, b"c": GOOD}, {DATA: b"ab"})

    assert [*bundle.specs] == [*bundle.keys] == ["a", "b", "c"]
    assert "b" in bundle.specs
    assert len(bundle.specs) == 3
    for ask in asks(bundle):
        with pytest.raises(CorruptCheckpointError, match="tensor 'b': its dtype number 0 is not known"):
            ask("b")
    assert raw(bundle.read("a")) == raw(bundle.read("c")) == b"ab"


def test_a_broken_entrys_error_is_a_new_one_each_time(tmp_path: Path) -> None:
    bundle = write_one(tmp_path, BROKEN)

    errors = []
    for _ in range(2):
        with pytest.raises(CorruptCheckpointError) as caught:
            bundle.read("a")
        errors.append(caught.value)

    assert errors[0] is not errors[1]
    assert len(traceback.extract_tb(errors[0].__traceback__)) == len(traceback.extract_tb(errors[1].__traceback__))


def test_a_key_that_is_no_text_is_a_broken_entry_under_its_repr(tmp_path: Path) -> None:
    bundle = write(tmp_path, {b"a\xff": GOOD, b"b": GOOD}, {DATA: b"ab"})

    assert [*bundle.specs] == ["b'a\\xff'", "b"]
    with pytest.raises(CorruptCheckpointError, match="its key is no UTF-8"):
        bundle.read("b'a\\xff'")


@pytest.mark.parametrize(("key", "text"), [(b"a\xff", "b'a\\xff'"), (b"c\xff", "b'c\\xff'")])
def test_a_key_that_is_no_text_takes_the_name_of_no_other(tmp_path: Path, key: bytes, text: str) -> None:
    bundle = write(tmp_path, {key: GOOD, text.encode(): GOOD}, {DATA: b"ab"})

    assert [*bundle.specs] == [text]
    assert raw(bundle.read(text)) == b"ab"


def test_thousands_of_broken_entries_take_little_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    bundle = write(tmp_path, {b"%d" % number: b"\xff" for number in range(5000)}, {})
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()

    assert len(bundle.specs) == 5000
    assert held < 5 << 20


def test_a_missing_data_file_is_an_error_of_those_in_it(tmp_path: Path) -> None:
    second = build_entry(4, (2,), 1, 0, 2, crc32c(b"ab"))
    bundle = write(tmp_path, {b"a": GOOD, b"b": second}, {"x.data-00000-of-00002": b"ab"}, build_header(2))

    refused(bundle, "b", "its data file is missing", "x.data-00001-of-00002")
    assert raw(bundle.read("a")) == b"ab"


def test_a_folder_is_no_data_file(tmp_path: Path) -> None:
    (tmp_path / DATA).mkdir()

    refused(write(tmp_path, {b"a": GOOD}, {}), "a", "its data file is missing")


@pytest.mark.parametrize("target", [DATA, "nowhere", "/dev/zero"])
def test_a_link_is_no_data_file(tmp_path: Path, target: str) -> None:
    (tmp_path / DATA).symlink_to(target)

    refused(write(tmp_path, {b"a": GOOD}, {}), "a", "its data file is missing")


def test_a_data_file_that_is_one_byte_short_is_refused(tmp_path: Path) -> None:
    refused(write_one(tmp_path, GOOD, b"a"), "a", "its bytes end at 2, the file at 1")


def test_a_data_file_may_be_longer_than_needed_and_others_may_lie_about(tmp_path: Path) -> None:
    bundle = write(tmp_path, {b"a": GOOD}, {DATA: b"abc", "x.data-00007-of-00008": b""})

    assert raw(bundle.read("a")) == b"ab"


@pytest.mark.parametrize(("shape", "offset"), [((2**62,), 0), ((2**62,), 2**62), ((1,), 2**63 - 1), ((0,), 3)])
def test_a_place_beyond_the_file_is_refused_before_memory_is_taken(tmp_path: Path, shape: tuple[int, ...], offset: int) -> None:
    entry = build_entry(4, shape, 0, offset, shape[0], 0)

    refused(write_one(tmp_path, entry, b"ab"), "a", f"its bytes end at {offset + shape[0]}, the file at 2")


def test_claims_of_billions_of_data_files_cost_nothing(tmp_path: Path) -> None:
    entry = build_entry(4, (2,), 2**31 - 2, 0, 2, 0)

    with cheap(seconds=0.5, nbytes=1 << 20):
        bundle = write(tmp_path, {b"a": entry}, {}, build_header(2**31 - 1))

    refused(bundle, "a", "missing", "x.data-2147483646-of-2147483647")


def test_an_index_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "x.index").open("wb") as file:
        file.truncate(300 << 20)

    with cheap(), pytest.raises(CorruptCheckpointError, match="over the limit of 268435456"):
        opened(tmp_path)


def test_a_header_that_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"x\.index' .* claims 0 data files") as caught:
        write(tmp_path, {}, {}, b"")

    assert caught.value.file == "x.index"


def test_a_changed_byte_of_a_tensor_is_noticed(tmp_path: Path) -> None:
    bundle = write_arrays(tmp_path, {"a": np.arange(4.0), "b": np.arange(3), "c": np.zeros(())})
    stored = (tmp_path / DATA).read_bytes()

    for at in range(len(stored)):
        (tmp_path / DATA).write_bytes(stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :])
        key = "a" if at < 32 else "b" if at < 56 else "c"
        with pytest.raises(CorruptCheckpointError, match=f"tensor '{key}': its bytes are not what was written"):
            bundle.read(key)


def test_a_tensor_of_no_bytes_has_the_checksum_of_none(tmp_path: Path) -> None:
    bundle = write(tmp_path, {b"a": build_entry(1, (0,), 0, 0, 0, 0), b"b": build_entry(1, (0,), 0, 0, 0, 1)}, {DATA: b""})

    assert bundle.read("a").shape == (0,)
    with pytest.raises(CorruptCheckpointError, match="tensor 'b'"):
        bundle.read("b")


def test_a_file_that_is_cut_off_after_the_opening_is_our_error(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "sliced", tmp_path, dirs_exist_ok=True)
    bundle = opened(tmp_path, "one_shard")

    for change in (lambda path: path.write_bytes(b""), lambda path: path.unlink()):
        change(tmp_path / "one_shard.data-00000-of-00001")
        for box in (None, Box((0, 0), (1, 1))):
            with pytest.raises(CorruptCheckpointError, match="was cut off or deleted"):
                bundle.read("emb/rows", box)
        with pytest.raises(CorruptCheckpointError, match="was cut off or deleted"):
            bundle.stored("plain")


def test_strings_that_lie_are_refused_with_the_reason(tmp_path: Path) -> None:
    bundle = write_one(tmp_path, build_entry(7, (2,), 0, 0, 8, 0), b"\x01\x01\x00\x00\x00\x00ab")

    with cheap(), pytest.raises(CorruptCheckpointError, match="tensor 'a': the lengths of its strings are not") as caught:
        bundle.read("a")
    assert caught.value.file == DATA


HALVES = [(((0, 2),), np.array([1, 2])), (((2, 2),), np.array([3, 4]))]


def partitioned(tmp_path: Path, change: Callable[[dict[bytes, bytes]], object]) -> Bundle:
    """A tensor in two halves, with something changed in its entries."""
    items, data = sliced("a", "int32", (4,), HALVES)
    change(items)
    return write(tmp_path, items, {DATA: data})


def test_a_missing_slice_is_refused(tmp_path: Path) -> None:
    bundle = partitioned(tmp_path, lambda items: items.pop(slice_key(b"a", ((2, 2),))))

    refused(bundle, "a", r"its slice from \(2,\) to \(4,\) has no entry", "x.index")
    assert bundle.read("a", Box((0,), (2,))).tolist() == [1, 2]


def test_a_slice_under_another_spelling_of_its_bounds_is_missing(tmp_path: Path) -> None:
    items, data = sliced("a", "int32", (2,), [(((0, 2),), np.array([1, 2]))])
    items[b"a"] = build_slices(3, (2,), [((0, None),)])

    refused(write(tmp_path, items, {DATA: data}), "a", "has no entry", "x.index")


@pytest.mark.parametrize(
    "entry",
    [
        build_entry(1, (2,), 0, 8, 8, 0),
        build_entry(3, (1,), 0, 8, 4, 0),
        build_entry(3, (2, 1), 0, 8, 8, 0),
        build_slices(3, (2,), [((0, 2),)]),
    ],
    ids=["another dtype", "another size", "another rank", "slices of its own"],
)
def test_a_slice_of_another_kind_is_refused(tmp_path: Path, entry: bytes) -> None:
    bundle = partitioned(tmp_path, lambda items: items.update({slice_key(b"a", ((2, 2),)): entry}))

    refused(bundle, "a", r"the entry of its slice from \(2,\) to \(4,\) is of another kind", "x.index")


def test_a_broken_slice_is_refused_under_the_key_of_its_tensor(tmp_path: Path) -> None:
    bundle = partitioned(tmp_path, lambda items: items.update({slice_key(b"a", ((2, 2),)): b"\xff"}))

    refused(bundle, "a", "no protobuf message", "x.index")


def test_a_slice_beyond_its_file_is_refused(tmp_path: Path) -> None:
    entry = build_entry(3, (2,), 0, 9, 8, 0)

    refused(
        partitioned(tmp_path, lambda items: items.update({slice_key(b"a", ((2, 2),)): entry})), "a", "end at 17, the file at 16"
    )


def test_a_changed_byte_of_a_slice_is_noticed(tmp_path: Path) -> None:
    items, data = sliced("a", "int32", (4,), HALVES)
    bundle = write(tmp_path, items, {DATA: data[:-1] + b"\x01"})

    with pytest.raises(CorruptCheckpointError, match="tensor 'a': its bytes are not what was written"):
        bundle.read("a")
    assert bundle.read("a", Box((0,), (2,))).tolist() == [1, 2]


def test_slices_that_overlap_are_refused(tmp_path: Path) -> None:
    overlapping = build_slices(3, (4,), [((0, 2),), ((1, 2),)])

    refused(partitioned(tmp_path, lambda items: items.update({b"a": overlapping})), "a", "its 2 slices overlap", "x.index")


def test_slices_that_all_lie_in_the_same_bytes_make_no_tensor_of_any_size(tmp_path: Path) -> None:
    count, each = 1000, 1 << 20
    extents = [((i * each, each),) for i in range(count)]
    items = {slice_key(b"a", one): build_entry(4, (each,), 0, 0, each, 0) for one in extents}
    items[b"a"] = build_slices(4, (count * each,), extents)

    bundle = write(tmp_path, items, {DATA: bytes(each)})

    refused(bundle, "a", "its slices have 1048576000 bytes, the files that they lie in 1048576", "x.index")


def test_an_object_of_many_slices_without_data_is_refused_at_once(tmp_path: Path) -> None:
    extents = [((i, 1), (j, 1)) for i in range(30) for j in range(30)]

    bundle = write(tmp_path, {b"a": build_slices(4, (30, 30), extents)}, {DATA: b""})

    refused(bundle, "a", "has no entry", "x.index")


def test_entries_may_not_have_more_slices_than_the_index_has_entries_for(tmp_path: Path) -> None:
    extents = [((i, 1),) for i in range(1000)]

    bundle = write(tmp_path, {key: build_slices(4, (1000,), extents) for key in (b"a", b"b")}, {DATA: b""})

    refused(bundle, "a", "has no entry", "x.index")
    with pytest.raises(CorruptCheckpointError, match="1000 slices, and the index entries for at most 24"):
        bundle.specs["b"]


def everything(folder: Folder, prefix: str) -> dict[str, str]:
    """The digest of every tensor that can be read; all else is our errors. Each is asked for in every way."""
    found = {}
    bundle = open_bundle(folder, prefix)
    for key in bundle.keys:
        with suppress(CorruptCheckpointError, UnsupportedTensorError):
            bundle.stored(key)
        with suppress(CorruptCheckpointError, UnsupportedTensorError):
            bundle.extents(key)
            spec = bundle.specs[key]
            bundle.read(key, Box((0,) * len(spec.shape), tuple(min(1, size) for size in spec.shape)))
        with suppress(CorruptCheckpointError, UnsupportedTensorError):
            found[key] = sha256(bundle.read(key))
    return found


def mutated(data: bytes, dice: random.Random) -> bytes:
    """``data`` with a byte flipped, a piece cut out, doubled or made extreme, or its end cut off."""
    at = dice.randrange(len(data) + 1)
    end = min(len(data), at + dice.choice([1, 1, 2, 4, 8, 40]))
    middle = dice.choice([bytes([dice.randrange(256)]), b"", data[at:end] * 2, b"\xff" * (end - at), bytes(end - at)])
    return data[:at] + middle + (b"" if dice.random() < 0.1 else data[end:])


def copied(prefix: str) -> Folder:
    folder = Folder(MemoryStore())
    for path in (GOLDEN / prefix).parent.iterdir():
        folder.write(path.name, path.read_bytes())
    return folder


@pytest.mark.parametrize("prefix", SMALL)
def test_a_damaged_file_gives_the_right_values_or_our_error(prefix: str) -> None:
    folder, name, dice = copied(prefix), Path(prefix).name, random.Random(prefix)
    right = everything(folder, name)
    files = {file: folder.read_range(file, 0, head.nbytes) for file, head in folder.list().files.items() if file.startswith(name)}

    outcomes = set()
    for _ in range(120):
        file = dice.choice([file for file in files if files[file]])
        folder.write(file, mutated(files[file], dice))
        with cheap():
            try:
                found = everything(folder, name)
            except CheckpointError:
                found = {}
        assert found.items() <= right.items()
        outcomes.add(len(found))
        folder.write(file, files[file])

    assert 0 in outcomes
    assert len(outcomes) > 2


@pytest.mark.parametrize("prefix", SMALL)
def test_a_damaged_entry_behind_good_checksums_gives_an_array_or_our_error(prefix: str) -> None:
    folder, name, dice = copied(prefix), Path(prefix).name, random.Random(prefix)
    items = table.decode(folder.read_range(f"{name}.index", 0, folder.list().files[f"{name}.index"].nbytes), ORIGIN)
    counts = set()
    for _ in range(120):
        chosen = dice.randrange(len(items))
        changed = [(key, mutated(value, dice) if at == chosen else value) for at, (key, value) in enumerate(items)]
        folder.write(f"{name}.index", table.encode(changed))
        with cheap(), suppress(CheckpointError):
            counts.add(len(everything(folder, name)))
    assert len(counts) > 1


@given(value=st.binary(max_size=60), own_slice=st.binary(max_size=60))
def test_any_bytes_as_an_entry_give_an_array_or_our_error(value: bytes, own_slice: bytes) -> None:
    folder = Folder(MemoryStore())
    items = [(b"", build_header(1)), (slice_key(b"a", ((0, 1),)), own_slice), (b"a", value), (b"b", GOOD)]
    folder.write("x.index", table.encode(items))
    folder.write(DATA, b"ab")

    found = everything(folder, "x")

    assert found["b"] == sha256(np.frombuffer(b"ab", np.uint8))
