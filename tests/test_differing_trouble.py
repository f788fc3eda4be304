"""Comparing what is large, damaged, shared, changed meanwhile, or not to be read at all."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import cheap
from incrementals import file_of, no_links, state

import ckptmgr
from ckptmgr import CheckpointManager, CorruptCheckpointError, StepNotFoundError, diff, differing, open_checkpoint


def sparse(path: Path, size: int, **marks: float) -> Path:
    """A safetensors file with one tensor of float32 zeros, but for the last element; it takes no space."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 4 * size)
        file.seek(-4, 2)
        file.write(np.float32(marks.get("last", 0)).tobytes())
    return path


def peak(tmp_path: Path, size: int, budget: int) -> int:
    """Most bytes in memory while two such files are compared."""
    old, new = sparse(tmp_path / "a.safetensors", size), sparse(tmp_path / "b.safetensors", size, last=1)
    tracemalloc.start()
    report = diff(old, new, budget=budget)
    _, found = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [(each.changed, each.max_abs) for each in report.tensors] == [(1, 1.0)]
    return found


def test_memory_is_bounded_by_the_budget_and_not_by_the_tensors(tmp_path: Path) -> None:
    peak(tmp_path, 10, 16 << 20)  # whatever is imported, is now

    assert peak(tmp_path, 50_000_000, 16 << 20) < 24 << 20  # of 400 MB


@pytest.mark.parametrize("budget", [1, 1 << 20])
def test_a_difference_is_found_wherever_a_piece_begins(tmp_path: Path, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differing, "PIECE", 1 << 10)
    old = {"a": np.arange(7, dtype=np.int8), "w": np.arange(100_003.0), "z": np.arange(9_999, dtype=np.uint16)}
    new = {name: array.copy() for name, array in old.items()}
    for index in (0, 1023, 1024, 8191, 8192, 65_535, 65_536, 100_002):
        new["w"].flat[index] += 1
    ckptmgr.save(tmp_path / "a.safetensors", old)
    ckptmgr.save(tmp_path / "b.npz", dict(reversed(new.items())), backend="npz")

    report = diff(tmp_path / "a.safetensors", tmp_path / "b.npz", budget=budget)

    assert [(each.name, each.changed, each.max_abs) for each in report.tensors] == [("w", 8, 1.0)]


def test_bytes_that_are_not_what_was_written_are_an_error_and_no_difference(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2):
            manager.save(step, {"w": np.arange(9.0), "v": np.ones(3)})
        damage(file_of(manager, 2, "w"))

        with manager.open(1) as old, manager.open(2) as new, pytest.raises(CorruptCheckpointError, match=r"'[vw]'") as caught:
            diff(old, new)

    assert (caught.value.step, caught.value.file) == (2, "model.safetensors")


@pytest.mark.parametrize("backend", ["npz", "tf_bundle"])
def test_a_damaged_file_is_told_by_the_checksum_that_its_format_has(tmp_path: Path, backend: str) -> None:
    for side in "ab":
        (tmp_path / side).mkdir()
        ckptmgr.save(f"{tmp_path}/{side}/", {"w": np.arange(900.0)}, backend=backend)
    damage(next(path for path in (tmp_path / "b").iterdir() if path.suffix != ".index"), at=3000)

    with pytest.raises(CorruptCheckpointError, match="'w'"):
        diff(tmp_path / "a", tmp_path / "b")


def damage(file: Path, at: int = -1) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_a_file_that_is_changed_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for side in "ab":
        np.savez(tmp_path / f"{side}.npz", w=np.arange(5000.0))

    def compare(*given: Any) -> Any:
        np.savez(tmp_path / "b.npz", w=np.arange(5001.0))
        return compared(*given)

    compared = differing._Job._compare
    monkeypatch.setattr(differing._Job, "_compare", compare)
    with pytest.raises(CorruptCheckpointError, match=r"b\.npz.*(changed|replaced)"):
        diff(tmp_path / "a.npz", tmp_path / "b.npz")


def test_a_header_that_lies_about_sizes_costs_nothing(tmp_path: Path) -> None:
    good = sparse(tmp_path / "a.safetensors", 1 << 40 >> 2)
    lying = tmp_path / "b.safetensors"
    with good.open("rb") as file:
        lying.write_bytes(file.read(200))

    with cheap(), pytest.raises(CorruptCheckpointError, match=r"b\.safetensors"):
        diff(good, lying)


# ---- what need not be read


@pytest.mark.parametrize("is_linked", [True, False])
def test_files_that_steps_share_are_not_read(tmp_path: Path, is_linked: bool) -> None:
    with CheckpointManager(tmp_path / "run", incremental=True) as manager:
        if is_linked:
            save_two(manager)
        else:
            with no_links():
                save_two(manager)
        with manager.open(1) as old, manager.open(2) as new:
            report = diff(old, new)

    assert [each.name for each in report.tensors] == ["adapter/a"]
    assert report.same == 2
    assert report.stats.nbytes == 2 * state(1)["adapter"]["a"].nbytes


def save_two(manager: CheckpointManager) -> None:
    manager.save(1, state(1))
    manager.save(2, state(2))


def test_a_checkpoint_is_the_same_as_itself_without_being_read(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "a.safetensors", {"w": np.ones(1000)})

    report = diff(tmp_path / "a.safetensors", tmp_path / "a.safetensors")

    assert (report.is_same, report.stats.nbytes) == (True, 0)


def test_files_of_one_name_in_two_memories_are_read(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/a.safetensors"
    ckptmgr.save(url, {"w": np.ones(1000)})

    report = diff(url, url)

    assert (report.is_same, report.stats.nbytes) == (True, 16_000)


def test_quick_compares_checksums_and_tells_what_has_none(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, {"w": np.ones(3), "v": np.ones(3), "n": 1})
        manager.save(2, {"w": np.ones(3), "v": np.zeros(3), "n": 1})
        with manager.open(1) as old, manager.open(2) as new:
            report = diff(old, new, quick=True)
            np.savez(tmp_path / "a.npz", w=np.ones(3))
            ckptmgr.save(tmp_path / "b.safetensors", {"w": np.ones(3)})
            with open_checkpoint(tmp_path / "b.safetensors") as plain:
                without = diff(tmp_path / "a.npz", plain, quick=True)

    assert ([(each.name, each.change) for each in report.tensors], report.same) == ([("v", "checksum")], 1)
    assert report.stats.nbytes == 0
    assert (without.unknown, without.is_same, without.same) == (("w",), False, 0)


def test_quick_uses_the_checksums_of_zip_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.ones(3), v=np.ones(3))
    np.savez(tmp_path / "b.npz", w=np.ones(3), v=np.zeros(3))

    report = diff(tmp_path / "a.npz", tmp_path / "b.npz", quick=True)

    assert ([each.name for each in report.tensors], report.same, report.unknown) == (["v"], 1, ())


def test_a_crc32c_that_says_equal_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differing, "_is_sum_equal", lambda old, new: True)
    for side, value in (("a", 1.0), ("b", 2.0)):
        ckptmgr.save(tmp_path / f"{side}.safetensors", {"w": np.concatenate([np.ones(1 << 17), [value]])})

    [found] = diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors").tensors

    assert (found.changed, found.max_abs, found.relative) == (1, 1.0, None)


def test_progress_ends_with_all_bytes_of_both(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    for side in "ab":
        ckptmgr.save(tmp_path / f"{side}.safetensors", {"w": np.ones(100_000), "s": np.ones(3)})

    diff(tmp_path / "a.safetensors", tmp_path / "b.safetensors", progress=lambda *given: told.append(given))

    assert told[-1] == (1_600_048, 1_600_048)
    assert told == sorted(told)


def test_a_step_that_is_deleted_meanwhile_is_no_damage(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2, 3):
            manager.save(step, {"w": np.full(3, step)})
        with manager.open(1) as old, manager.open(3) as new:
            manager.delete(1)

            with pytest.raises(StepNotFoundError, match="step 1"):
                diff(old, new)


def test_steps_of_another_tool_are_compared_as_any(tmp_path: Path) -> None:
    for step in (1, 2):
        np.savez(tmp_path / f"ckpt-{step}.npz", w=np.full(3, step))

    with CheckpointManager(tmp_path) as manager, manager.open(1) as old, manager.open(2) as new:
        report = diff(old, new)

    assert (report.steps, [each.max_abs for each in report.tensors]) == ((1, 2), [1])
