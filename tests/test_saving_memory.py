"""What a save takes of memory: nothing that grows with the state."""

from pathlib import Path

import pytest

from benchmarks.measure import sample
from benchmarks.states import small, transformer
from ckptmgr import CheckpointManager

MIB = 1 << 20


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["safetensors", "tf_bundle", "hdf5"])
def test_a_save_of_large_host_arrays_takes_a_twentieth_of_their_memory_at_most(tmp_path: Path, backend: str) -> None:
    state = transformer(256 * MIB)
    manager = CheckpointManager(tmp_path, backend=backend)
    manager.save(0, {"w": next(iter(state.values()))[:1]})

    taken = sample(lambda: manager.save(1, state))

    assert taken.extra_nbytes < 0.05 * 256 * MIB


@pytest.mark.slow
def test_a_save_of_many_small_tensors_takes_their_rows_and_not_their_bytes(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)

    few, many = (sample(lambda state=state: manager.save(0, state, overwrite=True)) for state in (small(100), small(20_000)))

    assert many.extra_nbytes - few.extra_nbytes < 40 * MIB
