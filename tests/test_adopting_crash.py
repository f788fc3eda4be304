"""Death and failure at every system call of an adoption: no step is lost or changed, nor is their order, and to adopt again
finishes the work.
"""

import errno
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from pointing import PointingBackend, write_foreign
from syscalls import counting, dying_at, failing_at, in_child

from ckptmgr import CheckpointManager


def run_of_others(root: Path) -> None:
    """Steps whose order runs against their numbers, and one of ours after them."""
    for step in (1, 2):
        write_foreign(root, f"ckpt-{step}", tensors(step))
    (root / "latest").write_text("ckpt-2\nckpt-1\n")
    CheckpointManager(root, backend=PointingBackend()).save(3, tensors(3))


def tensors(step: int) -> dict[str, np.ndarray]:
    return {"w": np.full(20, step, np.float32), "b": np.arange(step)}


def is_whole(found: dict[str, np.ndarray], step: int) -> bool:
    return all(np.array_equal(found[name], tensor) for name, tensor in tensors(step).items())


def adopt(root: Path) -> None:
    CheckpointManager(root, backend=PointingBackend()).adopt()


def check(root: Path) -> None:
    """Nothing is lost, hints name what is there, and to adopt again finishes the work."""
    manager = CheckpointManager(root, backend=PointingBackend())
    assert [info.step for info in manager.steps()] == [2, 1, 3]
    assert all(is_whole(manager.restore(step).state, step) for step in (1, 2, 3))
    assert all((root / f"{stem}.idx").exists() for stem in (root / "latest").read_text().splitlines())

    manager.adopt()
    manager.sweep(grace=0)

    expected = {".ckptmgr.lock", "latest"}
    for info in manager.steps():
        place, stem = f"{info.name}/a-{info.attempt}", "model" if info.step == 3 else f"ckpt-{info.step}"
        expected |= {f"{info.name}/manifest.json", *(f"{place}/{name}" for name in (f"{stem}.bin", f"{stem}.idx", "tree.json"))}
    assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == expected
    assert [(info.step, info.is_foreign) for info in manager.steps()] == [(2, False), (1, False), (3, False)]
    assert all(is_whole(manager.restore(step).state, step) for step in (1, 2, 3))
    assert manager.verify().ok


def count(tmp_path: Path) -> int:
    run_of_others(tmp_path / "count")
    with counting() as calls:
        adopt(tmp_path / "count")
    return len(calls)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_every_system_call_may_be_the_last_before_death(tmp_path, when):
    def dies(n: int, root: Path) -> None:
        with dying_at(n, when=when):
            adopt(root)

    for n in range(count(tmp_path)):
        root = tmp_path / f"run-{n}"
        run_of_others(root)

        assert in_child(lambda n=n, root=root: dies(n, root)) == -signal.SIGKILL

        check(root)
        shutil.rmtree(root)


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_every_system_call_may_fail(tmp_path, code):
    total, failed = count(tmp_path), 0
    for n in range(total):
        root = tmp_path / f"run-{n}"
        run_of_others(root)

        try:
            with failing_at(n, code):
                adopt(root)
        except OSError:
            failed += 1

        check(root)
        shutil.rmtree(root)
    assert failed > total // 2
