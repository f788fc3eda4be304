"""Adopting what other tools wrote: the same bytes, committed, with nothing lost at any moment."""

import json
from datetime import UTC
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from pointing import PointingBackend, write_foreign
from runs import files
from safetensors.numpy import load_file, save_file

from ckptmgr import (
    CheckpointManager,
    CorruptCheckpointError,
    StepNaming,
    backend,
    save,
)
from ckptmgr.storage import PosixStore
from ckptmgr.treefile import TreeFile

AWKWARD = {
    "nan": np.array([0x7FC01234, 0x80000000, 1], np.uint32).view(np.float32),
    "half": np.arange(5).astype(ml_dtypes.bfloat16),
    "scalar": np.int64(-3),
    "empty": np.zeros((0, 3), np.int8),
    "a/b": np.arange(6).reshape(2, 3),
}


@pytest.fixture
def manager(tmp_path) -> CheckpointManager:
    return CheckpointManager(tmp_path, backend=PointingBackend())


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(
        np.asarray(found[name]).dtype == np.asarray(value).dtype
        and np.asarray(found[name]).shape == np.shape(value)
        and np.asarray(found[name]).tobytes() == np.asarray(value).tobytes()
        for name, value in expected.items()
    )


def originals(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name[0] != ".")


def test_an_adopted_step_is_committed_bit_exact_and_the_originals_are_gone(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", AWKWARD)
    raw = (tmp_path / "ckpt-5.bin").read_bytes()
    created = manager.latest().created

    (info,) = manager.adopt(5)

    assert manager.steps() == [info]
    assert (info.step, info.is_foreign, info.name, info.backend) == (5, False, "step-00000005", "fake")
    assert info.created == created.astimezone(UTC)
    assert (Path(info.path) / "ckpt-5.bin").read_bytes() == raw
    assert same(manager.restore(5).state, AWKWARD)
    assert manager.verify(5).ok
    assert originals(tmp_path) == ["latest"]


def test_adopting_nothing_gives_nothing_and_writes_nothing(manager, tmp_path):
    assert manager.adopt() == []
    assert files(tmp_path) == set()


def test_the_file_to_open_is_deleted_first(manager, tmp_path, monkeypatch):
    write_foreign(tmp_path, "ckpt-5", {"w": np.zeros(2)})
    delete, seen = PosixStore.delete, []
    monkeypatch.setattr(PosixStore, "delete", lambda self, keys: delete(self, [seen.append(key) or key for key in keys]))

    manager.adopt()

    assert seen == ["ckpt-5.idx", "ckpt-5.bin"]


def test_a_nested_state_restores_as_before(manager, tmp_path):
    paths = {"layer/w": ["layer", "w"], "tied": ["head", "w"], "step": ["step"]}
    tensors = {"layer/w": np.arange(3.0), "step": np.int64(9)}
    write_foreign(tmp_path, "ckpt-5", tensors, paths=paths, aliases={"tied": "layer/w"})
    into = {"layer": {"w": np.zeros(3)}, "head": {"w": np.zeros(3)}, "step": 0}
    before, filled = manager.restore(5).state, manager.restore(5, into=into).state

    manager.adopt(5)

    after, refilled = manager.restore(5).state, manager.restore(5, into=into).state
    assert after["layer"]["w"] is after["head"]["w"]
    assert before["layer"]["w"] is before["head"]["w"]
    for one, other in ((before, after), (filled, refilled)):
        assert list(one) == list(other) == ["layer", "step", "head"] or list(one) == list(other) == ["layer", "head", "step"]
        assert one["layer"]["w"].tolist() == other["layer"]["w"].tolist() == [0, 1, 2]
        assert one["step"] == other["step"] == 9
        assert type(one["step"]) is type(other["step"])


def test_names_keep_their_order_whatever_lies_first_in_the_files(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"v": np.zeros(2), "text": np.zeros(2), "a": np.ones(2)}, decoded=["text"])
    index = json.loads((tmp_path / "ckpt-5.idx").read_text())
    index["tensors"] = {name: index["tensors"][name] for name in ("a", "text", "v")}
    (tmp_path / "ckpt-5.idx").write_text(json.dumps(index))

    manager.adopt()

    with manager.open(5) as checkpoint:
        assert list(checkpoint.specs) == ["a", "text", "v"]


def test_flat_dotted_names_fill_a_nested_template_as_before(tmp_path):
    save_file({"model.w": np.arange(3.0)}, tmp_path / "checkpoint-5.safetensors")
    manager = CheckpointManager(tmp_path)
    manager.adopt()

    assert manager.restore(5, into={"model": {"w": np.zeros(3)}}).state["model"]["w"].tolist() == [0, 1, 2]
    assert list(manager.restore(5).state) == ["model.w"]


def test_a_file_of_ckptmgrs_own_keeps_its_state_tree(tmp_path):
    save(tmp_path / "ckpt-5.safetensors", {"epoch": 3, "w": (np.zeros(2), None)})
    manager = CheckpointManager(tmp_path)

    manager.adopt()

    restored = manager.restore(5).state
    assert (restored["epoch"], type(restored["w"]), restored["w"][1]) == (3, tuple, None)


def test_a_sharded_set_keeps_its_names_and_opens_in_its_own_library(tmp_path):
    tensors = {f"w{i}": np.full(10, i) for i in range(4)}
    CheckpointManager(tmp_path / "other", max_file_nbytes=100).save(1, tensors)
    for path in Path(CheckpointManager(tmp_path / "other").path(1)).glob("model*"):
        text = path.read_bytes()
        name = path.name.replace("model", "ckpt-5")
        (tmp_path / name).write_bytes(text.replace(b"model-", b"ckpt-5-") if name.endswith(".json") else text)
    manager = CheckpointManager(tmp_path)

    manager.adopt()

    assert same(manager.restore(5).state, tensors)
    folder = Path(manager.path(5))
    assert len(list(folder.glob("ckpt-5-0000?-of-00004.safetensors"))) == 4
    assert load_file(folder / "ckpt-5-00002-of-00004.safetensors")["w1"][0] == 1
    assert originals(tmp_path) == []


def test_checksums_of_every_tensor_are_known_afterwards(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"v": np.zeros(3), "w": np.arange(3)}, has_sums=False)
    (info,) = manager.adopt()
    path = Path(info.path) / "ckpt-5.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"x")

    assert {problem.tensor for _, problem in manager.verify(5).problems} == {None, "w"}


def test_a_tensor_larger_than_a_window_and_gaps_are_copied_and_summed(manager, tmp_path, monkeypatch):
    monkeypatch.setattr(PosixStore, "window_nbytes", 64)
    write_foreign(tmp_path, "ckpt-5", {"a": np.arange(3, dtype=np.int8), "b": np.arange(50), "c": np.arange(7)})
    index = (tmp_path / "ckpt-5.idx").read_text()
    (tmp_path / "ckpt-5.idx").write_text(index.replace(", 403, ", ", 500, "))
    raw = (tmp_path / "ckpt-5.bin").read_bytes()
    (tmp_path / "ckpt-5.bin").write_bytes(raw[:403] + bytes(97) + raw[403:] + b"end")

    (info,) = manager.adopt()

    assert same(manager.restore(5).state, {"a": np.arange(3, dtype=np.int8), "b": np.arange(50), "c": np.arange(7)})
    assert (Path(info.path) / "ckpt-5.bin").stat().st_size == 559
    assert manager.verify().ok


def test_what_only_the_format_can_decode_is_read_by_it(manager, tmp_path, monkeypatch):
    write_foreign(tmp_path, "ckpt-5", {"text": np.arange(3), "w": np.arange(2)}, decoded=["text"])
    monkeypatch.setattr(backend, "find", lambda name: PointingBackend())

    manager.adopt()

    assert same(manager.restore(5).state, {"text": np.arange(3), "w": np.arange(2)})


def test_progress_reaches_the_total(tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"w": np.zeros(300)})
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    seen: list[tuple[int, int]] = []

    CheckpointManager(tmp_path, backend=PointingBackend(), progress=lambda *counts: seen.append(counts)).adopt()

    assert seen[-1] == (total, total)


def test_a_naming_that_needs_metadata_takes_the_stem_where_that_fits(tmp_path):
    write_foreign(tmp_path, "e2-40", {"w": np.zeros(1)})
    write_foreign(tmp_path, "ckpt-30", {"w": np.zeros(1)})
    manager = CheckpointManager(tmp_path, backend=PointingBackend(), naming=StepNaming("e{epoch}-{step}"))

    assert [info.name for info in manager.adopt(40)] == ["e2-40"]
    with pytest.raises(ValueError, match=r"needs metadata\['epoch'\]"):
        manager.adopt(30)
    assert (tmp_path / "ckpt-30.idx").exists()


def test_the_manifest_tells_what_was_adopted(manager, tmp_path):
    write_foreign(tmp_path, "ckpt-5", {"w": np.zeros(1)})
    manager.adopt()

    assert '"adopted": "ckpt-5"' in (tmp_path / "step-00000005" / "manifest.json").read_text()
    assert manager.latest().metadata == {}


def test_how_names_nest_is_kept_in_the_tree_and_checked():
    paths = {"layer/w": ("layer", "w"), "list/0": ("list", 0)}
    tree = TreeFile(None, [], paths=paths)

    assert TreeFile.decode(tree.encode(), where="tree.json") == tree
    for bad in (["layer", 1.5], "layer", ["a", None]):
        data = tree.encode().replace(b'["layer","w"]', json.dumps(bad).encode())
        with pytest.raises(CorruptCheckpointError, match=r"tree\.json"):
            TreeFile.decode(data, where="tree.json")
