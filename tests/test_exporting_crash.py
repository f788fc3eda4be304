"""Death at every system call of an export: what the tool finds is the older state or the new one, whole, and never a mixture."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from syscalls import counting, dying_at, in_child

import ckptmgr
from ckptmgr import CheckpointManager, export

Action = Callable[[Path], object]


def to_hf(folder: Path) -> None:
    export(folder / "run", folder / "new", to="hf", max_shard_size=1000)


def over_hf(folder: Path) -> None:
    export(folder / "run", folder / "hf", to="hf", max_shard_size=1000, overwrite=True)


def to_tf(folder: Path) -> None:
    export(folder / "run", folder / "tf", to="tf")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "it"
    with CheckpointManager(folder / "run") as manager:
        for step in (1, 2):
            model = {"w": np.full(200, step, np.float32), "b": np.full(200, step, np.float32)}
            manager.save(step, {"model": model}, assets={"config.json": b'{"step": %d}' % step})
    export(folder / "run", folder / "tf", to="tf", step=1)
    export(folder / "run", folder / "hf", to="hf", step=1, max_shard_size=1000)
    (folder / "new").mkdir()
    return folder


def found(folder: Path) -> list[int | None]:
    """The steps that tools find in each place, of which every byte is that step's."""
    return [_step(folder / name) for name in ("new", "hf", "tf")]


def _step(folder: Path) -> int | None:
    if not any((folder / name).exists() for name in ("model.safetensors.index.json", "checkpoint")):
        return None  # this is what tells the tool that there is something
    state = ckptmgr.load(folder)
    state = state.get("model", state)
    [step] = {int(value) for array in state.values() for value in array}
    if folder.name != "tf":
        assert (folder / "config.json").read_bytes() == b'{"step": %d}' % step
    return step


@pytest.mark.parametrize(
    ("action", "allowed"),
    [
        (to_hf, [[None, 1, 1], [2, 1, 1]]),
        (over_hf, [[None, 1, 1], [None, None, 1], [None, 2, 1]]),
        (to_tf, [[None, 1, 1], [None, 1, 2]]),
    ],
)
def test_after_a_death_at_any_call_the_tool_finds_one_step_or_the_other(
    template: Path, tmp_path: Path, action: Action, allowed: list[list[int | None]]
) -> None:
    with counting() as calls:
        action(shutil.copytree(template, tmp_path / "count"))
    assert found(tmp_path / "count") == allowed[-1]
    seen = []

    for n in range(len(calls)):
        folder = shutil.copytree(template, tmp_path / str(n))

        def dies(folder: Path = folder, n: int = n) -> None:
            with dying_at(n):
                action(folder)

        assert in_child(dies) == -signal.SIGKILL
        seen.append(found(folder))

    assert all(each in allowed for each in seen)
    assert seen[0] == allowed[0]
