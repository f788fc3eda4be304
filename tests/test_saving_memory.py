"""What a save takes of memory: nothing that grows with the state."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from syscalls import in_child

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `benchmarks` is no installed package
from benchmarks.measure import timed
from benchmarks.states import small, transformer
from ckptmgr import CheckpointManager

MIB = 1 << 20


def taken(call: Callable[[], object]) -> int:
    """Bytes of memory that a call takes beyond what was there, in a process of its own."""
    receive, send = os.pipe()
    assert in_child(lambda: os.write(send, b"%d" % timed(call)["extra_nbytes"])) == 0
    os.close(send)
    with os.fdopen(receive) as stream:
        return int(stream.read())


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["safetensors", "tf_bundle", "hdf5"])
def test_a_save_of_large_host_arrays_takes_a_twentieth_of_their_memory_at_most(tmp_path: Path, backend: str) -> None:
    state = transformer(256 * MIB)
    manager = CheckpointManager(tmp_path, backend=backend)
    manager.save(0, {"w": next(iter(state.values()))[:1]})

    assert taken(lambda: manager.save(1, state)) < 0.05 * 256 * MIB


@pytest.mark.slow
def test_a_save_of_many_small_tensors_takes_their_rows_and_not_their_bytes(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)

    few, many = (taken(lambda state=state: manager.save(0, state, overwrite=True)) for state in (small(100), small(20_000)))

    assert many - few < 40 * MIB
