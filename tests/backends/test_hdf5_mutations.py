"""Files of every kind that the HDF5 backend opens, damaged: our error or values, soon and in little memory."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
from bounds import cheap

import ckptmgr
from ckptmgr.errors import CheckpointError
from ckptmgr_hdf5 import HDF5Backend

KERAS = Path(__file__).parents[1] / "golden" / "keras"
SHARDED = "k3_tutorial_sharded"
MARKS = (b"\x89HDF", b"OHDR", b"OCHK", b"TREE", b"SNOD", b"HEAP", b"GCOL", b"PK\1\2", b"PK\3\4", b"PK\5\6", b'"/', b"\1\0\x10\0")
NASTY = (bytes(8), b"\xff" * 8, b"\xff\xff\xff\x7f", (1 << 40).to_bytes(8, "little"), (1 << 20).to_bytes(8, "little"), b"/../")
STATE = {
    "layers": [{"w": np.arange(12.0).reshape(3, 4), "b": np.arange(4).astype(ml_dtypes.bfloat16)}, {"flags": np.array([True])}],
    "text": np.array(["x", "né"], object),
    "raw": np.array([b"a\0", b"\xff"], object),
    "slots": [np.full(3, float(i)) for i in range(9)],
    "step": 7,
}
TIMES = 7  # each damage is done to each file
Damage = Callable[[bytearray, int, random.Random], None]


def flip(data: bytearray, at: int, dice: random.Random) -> None:
    data[at] ^= 1 << dice.randrange(8)


def claim(data: bytearray, at: int, dice: random.Random) -> None:
    value = dice.choice(NASTY)[: len(data) - at]
    data[at : at + len(value)] = value


def cut(data: bytearray, at: int, dice: random.Random) -> None:
    del data[at:]


def zero(data: bytearray, at: int, dice: random.Random) -> None:
    end = min(at + dice.choice((1, 8, 64, 600)), len(data))
    data[at:end] = bytes(end - at)


def move(data: bytearray, at: int, dice: random.Random) -> None:
    nbytes = min(dice.choice((8, 40, 300)), len(data) - at)
    source = place(data, dice)
    data[at : at + nbytes] = data[source : source + nbytes].ljust(nbytes, b"\0")


DAMAGES: tuple[Damage, ...] = (flip, claim, cut, zero, move)


def place(data: bytes | bytearray, dice: random.Random) -> int:
    """Anywhere, but mostly shortly behind a mark of a structure."""
    mark = data.find(dice.choice(MARKS), dice.randrange(len(data)))
    near = mark + dice.randrange(96)
    return near if mark >= 0 and near < len(data) and dice.random() < 0.8 else dice.randrange(len(data))


def write_ours(path: Path) -> None:
    ckptmgr.save(path, STATE, backend=HDF5Backend())


def write_h5py(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["group/array"] = np.arange(30.0)
        file["texts"] = ["one", "two"]
        file.create_dataset("deep/er/number", data=np.float32(3)).attrs["unit"] = "m"


def write_latest(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        file["group/array"] = np.arange(30.0)
        file["group"].attrs["names"] = np.array([b"array"])
        file.create_dataset("complex", data=np.array([1j]))


def write_chunked(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("packed", data=np.arange(3000) % 7, chunks=(500,), compression="gzip")


WRITERS = {"ours.h5": write_ours, "h5py.h5": write_h5py, "latest.h5": write_latest, "chunked.h5": write_chunked}
OURS_TO_PARSE = ("ours.h5", "h5py.h5", "latest.h5")
GOLDEN = (
    "k2_functional.keras",
    "k2_tutorial.h5",
    "k2_tutorial.weights.h5",
    "k2_tutorial_weightsonly.h5",
    "k3_bf16.keras",
    "k3_bf16.weights.h5",
    "k3_lambda.h5",
    "k3_subclassed.weights.h5",
    "k3_tutorial.h5",
    "k3_tutorial.keras",
    "k3_tutorial.weights.h5",
    f"{SHARDED}.weights.json",
    f"{SHARDED}_00001.weights.h5",
    f"{SHARDED}_00004.weights.h5",
)


def put(name: str, folder: Path) -> tuple[Path, Path]:
    """The file that is to be damaged, and the one to open, alone with what belongs to them."""
    if name in WRITERS:
        WRITERS[name](folder / name)
        return folder / name, folder / name
    for path in KERAS.glob(f"{SHARDED}*") if SHARDED in name else [KERAS / name]:
        if "expected" not in path.name:
            shutil.copy(path, folder)
    return folder / name, folder / (f"{SHARDED}.weights.json" if SHARDED in name else name)


def outcome(path: Path) -> str:
    """What reading everything gives: "values", or the name of our error. Any other error, and any excess, is a failure."""
    with cheap(seconds=2):
        try:
            read(path)
        except (CheckpointError, FileNotFoundError) as error:
            return type(error).__name__
    return "values"


def read(path: Path) -> None:
    with ckptmgr.open_checkpoint(path) as checkpoint:
        for name, spec in checkpoint.specs.items():
            assert checkpoint.read(name).shape in (spec.shape, (spec.nbytes,))
        for blob in checkpoint.blobs.values():
            assert isinstance(blob, bytes)


def damaged(name: str, folder: Path, damage: Damage, times: int = TIMES) -> Counter[str]:
    """How often each outcome came of damaging a file so, in different places."""
    target, opened = put(name, folder)
    right = target.read_bytes()
    dice = random.Random(f"{name} {damage.__name__}")
    found: Counter[str] = Counter()
    for _ in range(times):
        data = bytearray(right)
        damage(data, place(right, dice), dice)
        target.write_bytes(data)
        found[outcome(opened)] += 1
    return found


def test_at_least_500_damaged_files_are_read() -> None:
    assert (len(OURS_TO_PARSE) + len(GOLDEN)) * len(DAMAGES) * TIMES >= 500


@pytest.mark.parametrize("name", [*WRITERS, *GOLDEN])
def test_undamaged_each_file_gives_values(name: str, tmp_path: Path) -> None:
    assert outcome(put(name, tmp_path)[1]) == "values"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", [*OURS_TO_PARSE, *GOLDEN])
def test_a_damaged_file_gives_values_or_our_error(name: str, damage: Damage, tmp_path: Path) -> None:
    found = damaged(name, tmp_path, damage)

    assert found.total() == TIMES
    assert damage is not cut or found["CorruptCheckpointError"] > 0


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_that_only_h5py_reads_gives_values_or_our_error(damage: Damage, tmp_path: Path) -> None:
    found = damaged("chunked.h5", tmp_path, damage, times=3)

    assert found.total() == 3
