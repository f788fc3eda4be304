"""Death and failure at every system call of a conversion: what was to be made is absent or whole, and the source as it was."""

import errno
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from syscalls import counting, dying_at, failing_at, in_child

import ckptmgr
from ckptmgr import CheckpointManager, convert, open_checkpoint
from ckptmgr.errors import CheckpointError

STATE = {"a": np.arange(3000.0), "b": np.ones((30, 7), np.float32), "c": np.arange(5)}
Action = Callable[[Path], object]


def to_file(folder: Path) -> None:
    convert(folder / "from", folder / "new" / "b.safetensors")


def to_set(folder: Path) -> None:
    convert(folder / "from", f"{folder}/new/", to="safetensors", max_file_nbytes=1000)


def over_another(folder: Path) -> None:
    convert(folder / "from", folder / "old" / "model", to="tf_bundle", max_file_nbytes=20_000, overwrite=True)


def to_step(folder: Path) -> None:
    convert(folder / "from", folder / "run", step=2, to="hdf5")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "it"
    folder.mkdir()
    ckptmgr.save(folder / "from", STATE, backend="tf_bundle")
    (folder / "old").mkdir()
    (folder / "new").mkdir()
    ckptmgr.save(folder / "old" / "model", {"x": np.zeros(9)}, backend="tf_bundle")
    CheckpointManager(folder / "run", backend="hdf5").save(1, {"x": np.zeros(9)})
    return folder


def is_whole(folder: Path) -> bool:
    """Whether the new checkpoint is there; it must then be whole, and an older one be itself otherwise."""
    for name in ("new", "old"):
        names = [path.name for path in (folder / name).iterdir() if not path.name.startswith(".")]
        ends = [each for each in names if each == "b.safetensors" or each.endswith((".index", ".index.json"))]
        if ends:
            with open_checkpoint(folder / name / ends[0].removesuffix(".index")) as opened:
                assert opened.verify() == []
                found = opened.load()
            assert set(found) in ({"x"}, set(STATE))
            if "x" not in found:
                assert all(np.array_equal(found[key], STATE[key]) for key in STATE)
                return True
    steps = CheckpointManager(folder / "run", backend="hdf5").steps()
    assert [info.step for info in steps] in ([1], [1, 2])
    return len(steps) == 2 and not CheckpointManager(folder / "run", backend="hdf5").verify(2).problems


@pytest.mark.parametrize("action", [to_file, to_set, over_another, to_step])
def test_after_a_death_at_any_call_it_is_absent_or_whole(template: Path, tmp_path: Path, action: Action) -> None:
    with counting() as calls:
        action(shutil.copytree(template, tmp_path / "count"))
    assert is_whole(tmp_path / "count")
    seen = set()

    for n in range(len(calls)):
        folder = shutil.copytree(template, tmp_path / str(n))

        def dies(folder: Path = folder, n: int = n) -> None:
            with dying_at(n):
                action(folder)

        assert in_child(dies) == -signal.SIGKILL
        seen.add(is_whole(folder))
        with open_checkpoint(folder / "from") as opened:
            assert opened.verify() == []
        shutil.rmtree(folder)
    assert False in seen


@pytest.mark.parametrize("action", [to_file, to_set, over_another, to_step])
def test_a_full_disk_at_any_call_is_an_error_and_leaves_nothing_half(template: Path, tmp_path: Path, action: Action) -> None:
    with counting() as calls:
        action(shutil.copytree(template, tmp_path / "count"))

    for n in range(len(calls)):
        folder = shutil.copytree(template, tmp_path / str(n))
        try:
            with failing_at(n, errno.ENOSPC):
                action(folder)
        except (OSError, CheckpointError):
            is_whole(folder)
        else:
            assert is_whole(folder)
        if action is to_set:
            names = [path.name for path in (folder / "new").iterdir() if not path.name.startswith(".ckptmgr")]
            assert names == [] or any(name.endswith(".index.json") for name in names)
        shutil.rmtree(folder)
