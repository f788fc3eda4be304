"""What a copy would do, told beforehand: it is what the copy then does, and nothing is changed by telling."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import state
from safetensors.numpy import save_file
from test_cli import damage

from ckptmgr import CheckpointManager, copy
from ckptmgr.copying import Copied, choose, copy_steps, plan_steps
from ckptmgr.finding import Run


class Stop(Exception):
    pass


def nothing(source: Path, target: Path) -> None:
    """An empty target."""


def there(source: Path, target: Path) -> None:
    copy(source, target, steps=[1, 2])


def other(source: Path, target: Path) -> None:
    CheckpointManager(target).save(2, state(9))


def foreign(source: Path, target: Path) -> None:
    target.mkdir()
    save_file({"w": np.zeros(2)}, target / "ckpt-2.safetensors")


def damaged(source: Path, target: Path) -> None:
    copy(source, target)
    damage(target, 2)


def record(source: Path, target: Path) -> None:
    copy(source, target)
    (target / "step-00000002" / "manifest.json").write_bytes(b"damaged")


def original(source: Path, target: Path) -> None:
    (source / "step-00000002" / "manifest.json").write_bytes(b"damaged")


def newer(source: Path, target: Path) -> None:
    copy(source, target)
    record = target / "step-00000002" / "manifest.json"
    record.write_bytes(record.read_bytes().replace(b'"format_version": 1', b'"format_version": 2'))


def interrupted(source: Path, target: Path) -> None:
    def stop(done: int, total: int) -> None:
        if 2 * done > total:
            raise Stop

    with suppress(Stop):
        copy(source, target, steps=2, progress=stop)


CASES = [nothing, there, other, foreign, damaged, record, original, newer, interrupted]


def told(end: Any) -> Any:
    if isinstance(end, Copied):
        return end.info.step, end.sent, sorted(end.found), end.nbytes, end.was_there
    return end.step, type(end.error), str(end.error)


def held(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"repair": True}, {"overwrite": True, "repair": True}], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_copy_does_what_was_told(tmp_path: Path, case: Callable[[Path, Path], None], options: dict[str, bool]) -> None:
    options = {"overwrite": False, "repair": False, **options}
    with CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2, 3):
            manager.save(step, state(step))
    case(tmp_path / "run", tmp_path / "copy")
    source, target = (Run(CheckpointManager(tmp_path / name).folder, manager.naming) for name in ("run", "copy"))
    chosen = choose(source, "all").steps
    before = held(tmp_path)

    planned = [told(end) for end in plan_steps(source, chosen, target, verify="full", **options)]

    assert held(tmp_path) == before
    assert (tmp_path / "copy").exists() is (case not in (nothing, original))
    assert planned == [told(end) for end in copy_steps(source, chosen, target, **options)]
