"""Damage of every kind, anywhere: it is found, named, survived, and never crashes anything."""

import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from ckptmgr import CheckpointError, CheckpointManager


def state(step: int) -> dict:
    rng = np.random.default_rng(step)
    tensors = {f"layer{i}": {"w": rng.random((7, 5), np.float32), "n": rng.integers(0, 9, 3)} for i in range(4)}
    return {"model": tensors, "step": step, "big": 1 << 70, "rng": random.Random(step)}


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """Two committed steps; the newer one in two shards, with an asset."""
    root = tmp_path_factory.mktemp("template") / "run"
    CheckpointManager(root).save(1, state(1))
    CheckpointManager(root, max_file_nbytes=400).save(2, state(2), metrics={"loss": 0.5}, assets={"config.json": b"{}" * 20})
    return root


def step_files(root: Path, step: int) -> list[Path]:
    return sorted(path for path in (root / f"step-{step:08d}").rglob("*") if path.is_file())


def damage(rng: random.Random, paths: list[Path]) -> str:
    """One random flip, truncation, extension, swap or deletion; says which."""
    kind = rng.choice(["flip"] * 6 + ["truncate", "extend", "swap", "delete"])
    path = rng.choice(paths)
    raw = bytearray(path.read_bytes())
    if kind == "flip":
        raw[at := rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        kind = f"flip of byte {at}"
    elif kind == "truncate":
        del raw[rng.randrange(len(raw)) :]
    elif kind == "extend":
        raw += rng.randbytes(rng.randint(1, 9))
    elif kind == "swap":
        other = rng.choice([p for p in paths if p != path])
        raw, theirs = bytearray(other.read_bytes()), bytes(raw)
        other.write_bytes(theirs)
    elif path.name == "manifest.json":  # deleting the record is deleting the step: no damage to be found
        raw = bytearray(b"{}")
        kind = "empty object"
    else:
        path.unlink()
        return f"deletion of {path.name}"
    path.write_bytes(raw)
    return f"{kind} in {path.name}"


@pytest.mark.slow
def test_every_damage_is_found_and_named_and_restore_falls_back(template, tmp_path):
    rng = random.Random(7)
    expected = state(1)["model"]["layer0"]["w"]
    for number in range(1000):
        root = tmp_path / "run"
        shutil.copytree(template, root)
        what = damage(rng, step_files(root, 2))
        manager = CheckpointManager(root)

        report = manager.verify(2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            restored = manager.restore()

        assert not report.ok, f"{number}: {what} was not found"
        assert all(problem.file for _, problem in report.problems), what
        if restored.step == 1:
            assert restored.report.skipped, what
            assert any("step 2 is skipped" in str(warning.message) for warning in caught), what
            np.testing.assert_array_equal(restored.state["model"]["layer0"]["w"], expected)
        else:  # only bytes that a restore does not need were damaged
            np.testing.assert_array_equal(restored.state["model"]["layer0"]["w"], state(2)["model"]["layer0"]["w"])
        assert manager.verify(1).ok
        shutil.rmtree(root)


def test_a_flipped_byte_of_a_tensor_names_file_and_tensor(template, tmp_path):
    shutil.copytree(template, tmp_path / "run")
    manager = CheckpointManager(tmp_path / "run")
    with manager.open(2) as checkpoint:
        extent = checkpoint.extents("model/layer2/w")[0]
    path = Path(manager.path(2)) / extent.file
    raw = bytearray(path.read_bytes())
    raw[extent.offset + 3] ^= 4
    path.write_bytes(raw)

    problems = manager.verify(2).problems

    assert {(step, problem.file, problem.tensor) for step, problem in problems if problem.tensor} == {
        (2, extent.file, "model/layer2/w")
    }
    with pytest.raises(CheckpointError, match="model/layer2/w"):
        manager.restore(2)


def test_a_step_folder_under_another_name_is_refused(template, tmp_path):
    shutil.copytree(template, tmp_path / "run")
    (tmp_path / "run" / "step-00000002").rename(tmp_path / "run" / "step-00000003")
    manager = CheckpointManager(tmp_path / "run")

    assert [info.step for info in manager.steps()] == [1]
    with pytest.raises(CheckpointError, match="step-00000003"):
        manager.restore(3)
