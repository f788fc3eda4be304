"""What the memory of a pickle is bounded by: its own size, whatever it is made of."""

import pickle
import tracemalloc
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from torch_pickles import REBUILD, archive, loaded, program, tensor

import ckptmgr
from ckptmgr.errors import CheckpointError

MIB = 1 << 20
NBYTES = MIB // 2
DTYPE = b"cnumpy\ndtype\nX\2\0\0\0i8\x85R"
ARRAY = b"cnumpy.core.numeric\n_frombuffer\nq\x000(C\x0812345678" + DTYPE + b"K\1\x85X\1\0\0\0Ctq\x010"
COMPLEX = b"c__builtin__\ncomplex\nq\x000G" + bytes(8) + b"G" + bytes(8) + b"\x86q\x010"
TENSOR = REBUILD + b"q\x000" + tensor()[len(REBUILD) : -1] + b"q\x010"
CALL, NAME = b"h\0h\1R", b"h\0"
ATTACKS = {  # what stands first, and what comes again and again as an item of a list
    "numpy arrays": (ARRAY, CALL),
    "tensors": (TENSOR, CALL),
    "one tensor": (tensor() + b"q\x000", NAME),
    "one dict": (b"}K\1Nsq\x000", NAME),
    "one tuple": (b"N\x85q\x000", NAME),
    "one complex number": (COMPLEX + CALL + b"q\x000", NAME),
    "one text of bytes": (b"C\x0812345678q\x000", NAME),
}


def opened(path: Path) -> int:
    """Bytes of memory that opening the file takes, whether it can be opened or not."""
    tracemalloc.start()
    try:
        with suppress(CheckpointError):
            ckptmgr.open_checkpoint(path).close()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ATTACKS)
def test_no_pickle_takes_more_than_32_times_its_size_and_32_mib(tmp_path: Path, name: str) -> None:
    first, again = ATTACKS[name]
    path = archive(tmp_path / "m.pt", program(first, b"](", again * (NBYTES // len(again)), b"e"))

    assert opened(path) < 32 * NBYTES + 32 * MIB


LEGITIMATE: dict[str, Any] = {
    "records": [{"step": step, "loss": step / 7, "tag": "x"} for step in range(30_000)],
    "small dicts": [{"a": step} for step in range(30_000)],
    "ordered dicts": [OrderedDict(a=step) for step in range(30_000)],
    "pairs": [(step, step / 7) for step in range(30_000)],
    "lists": [[] for _ in range(30_000)],
    "a vocabulary": {f"token {number}": number for number in range(30_000)},
    "by number": {number: number / 7 for number in range(30_000)},
}


@pytest.mark.parametrize("name", LEGITIMATE)
def test_long_lists_of_small_values_are_read_as_they_were_pickled(tmp_path: Path, name: str) -> None:
    value = LEGITIMATE[name]

    found = loaded(archive(tmp_path / "m.pt", pickle.dumps({"x": value}, 2)))

    assert found == {"x": value}


def test_what_a_pickle_names_twice_is_two_values_of_a_state(tmp_path: Path) -> None:
    shared = [1, {"a": [2]}, (3,)]

    found = loaded(archive(tmp_path / "m.pt", pickle.dumps({"x": shared, "y": shared}, 2)))
    found["x"][1]["a"].append(4)

    assert found["y"] == shared
