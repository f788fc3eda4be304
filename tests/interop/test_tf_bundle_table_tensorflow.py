"""Index files to and from TensorFlow, which writes and reads them through its own tables."""

import random
from pathlib import Path

import numpy as np
import pytest
from frameworks import tf
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptmgr.backend import crc32c
from ckptmgr_tf_bundle.masking import mask
from ckptmgr_tf_bundle.origin import Origin
from ckptmgr_tf_bundle.table import decode, encode

ORIGIN = Origin("model.index", "model.index")
HEADER = (b"", bytes.fromhex("08011a020801"))
TINY = st.lists(st.sampled_from([b"a", b"b", b"/", b"z", b"\xc3\xa9", b"layer_"]), min_size=1, max_size=12).map(b"".join)


def written_by_tensorflow(folder: Path, names: list[bytes]) -> bytes:
    """The index of a checkpoint with an empty tensor of each name."""
    empty = tf.zeros([0], tf.int32)
    tf.raw_ops.SaveV2(
        prefix=str(folder / "model"), tensor_names=names, shape_and_slices=[""] * len(names), tensors=[empty] * len(names)
    )
    return (folder / "model.index").read_bytes()


def scalar(number: int) -> bytes:
    """The entry of a float32 scalar with that value, the numbers one after another in the data file."""
    offset = b""
    rest = 4 * number
    while rest >= 0x80:
        offset, rest = offset + bytes((rest & 0x7F | 0x80,)), rest >> 7
    checksum = mask(crc32c(np.float32(number).tobytes())).to_bytes(4, "little")
    return b"\x08\x01\x12\x00\x20" + offset + bytes((rest,)) + b"\x28\x04\x35" + checksum


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@settings(max_examples=50, deadline=None)
@given(st.sets(TINY, min_size=1, max_size=80))
def test_any_names_give_the_bytes_that_tensorflow_writes(place: Path, names: set[bytes]) -> None:
    data = written_by_tensorflow(place, sorted(names))

    assert encode(decode(data, ORIGIN)) == data


@pytest.mark.parametrize("nbytes", [262_080, *range(262_095, 262_125), 524_250, *range(524_255, 524_290)])
def test_blocks_are_cut_where_tensorflow_cuts_them(tmp_path: Path, nbytes: int) -> None:
    data = written_by_tensorflow(tmp_path, [b"a", b"b" * nbytes, b"c"])

    assert encode(decode(data, ORIGIN)) == data


@pytest.mark.parametrize("seed", range(4))
def test_separators_between_many_blocks_are_those_of_tensorflow(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    names = {bytes(chance.choices(b"abyz~\x7f", k=chance.randrange(1, 4))) * chance.randrange(1, 60_000) for _ in range(100)}

    data = written_by_tensorflow(tmp_path, sorted(names))

    assert encode(decode(data, ORIGIN)) == data


def test_tensorflow_finds_every_tensor_of_a_table_that_we_wrote(tmp_path: Path) -> None:
    numbers = range(20_000)
    names = [f"model/block_{number:05}/kernel" for number in numbers]
    items = [(name.encode(), scalar(number)) for name, number in zip(names, numbers, strict=True)]

    (tmp_path / "model.index").write_bytes(encode([HEADER, *items]))
    (tmp_path / "model.data-00000-of-00001").write_bytes(np.arange(20_000, dtype=np.float32).tobytes())

    reader = tf.train.load_checkpoint(str(tmp_path / "model"))
    assert reader.get_variable_to_shape_map() == {name: [] for name in names}
    assert [reader.get_tensor(name) for name in names] == list(numbers)
