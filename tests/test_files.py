"""`ckptmgr.save`, `load` and `open_checkpoint`: single checkpoints under a name of the user's choice."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from frameworks import torch
from safetensors.numpy import load_file, save_file

import ckptmgr
from ckptmgr import (
    BackendNotFoundError,
    CheckpointManager,
    CorruptCheckpointError,
    StateMismatchError,
    StepNotFoundError,
    commit,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_flat_state_makes_a_plain_file_of_the_format(tmp_path):
    tensors = {"encoder.weight": np.arange(6.0).reshape(2, 3), "a/b": np.zeros(3, np.int8)}

    paths = ckptmgr.save(tmp_path / "m.safetensors", tensors)

    assert paths == [str(tmp_path / "m.safetensors")]
    assert b"__metadata__" not in Path(paths[0]).read_bytes()
    loaded = load_file(paths[0])
    assert sorted(loaded) == sorted(tensors)
    np.testing.assert_array_equal(loaded["encoder.weight"], tensors["encoder.weight"])


def test_a_nested_state_comes_back_from_one_file(tmp_path):
    shared = np.arange(4)
    state = {"model": {"w": shared, "head": shared}, "opt": [np.zeros(2), (1, 2.5)], "epoch": 3, "name": "é", 7: None}

    ckptmgr.save(tmp_path / "s.safetensors", state)
    loaded = ckptmgr.load(tmp_path / "s.safetensors")

    assert loaded["epoch"] == 3
    assert loaded["opt"][1] == (1, 2.5)
    assert loaded[7] is None
    assert loaded["model"]["head"] is loaded["model"]["w"]
    assert "model.w" in load_file(tmp_path / "s.safetensors")


def test_a_foreign_file_loads_flat_and_into_a_nested_state(tmp_path):
    save_file({"model.w": np.ones(3, np.float32)}, tmp_path / "x.safetensors")
    mine = {"model": {"w": np.zeros(3, np.float32)}}

    assert list(ckptmgr.load(tmp_path / "x.safetensors")) == ["model.w"]
    ckptmgr.load(str(tmp_path / "x.safetensors"), into=mine)

    assert mine["model"]["w"].tolist() == [1, 1, 1]


def test_a_smaller_set_leaves_no_stale_shard_and_a_single_file_no_index(tmp_path):
    tensors = {f"t{i}": np.full(100, i, np.int64) for i in range(6)}
    ckptmgr.save(f"{tmp_path}/", tensors, max_file_nbytes=800)
    assert len(names(tmp_path)) == 7
    (tmp_path / "mine.safetensors").write_bytes(b"foreign")

    ckptmgr.save(f"{tmp_path}/", tensors, max_file_nbytes=2400)
    assert names(tmp_path) == [
        "mine.safetensors",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    (tmp_path / "mine.safetensors").unlink()
    assert ckptmgr.load(tmp_path)["t5"][0] == 5

    ckptmgr.save(tmp_path, tensors)
    assert names(tmp_path) == ["model.safetensors"]


def test_a_failed_save_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    ckptmgr.save(path, {"w": np.zeros(3)})
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", _full)

    with pytest.raises(OSError, match="full"):
        ckptmgr.save(path, {"w": np.ones(3)})

    assert path.read_bytes() == before
    assert names(tmp_path) == ["m.safetensors"]


def _full(*_: object, **__: object) -> None:
    raise OSError(28, "disk full")


def test_the_files_mode_follows_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        ckptmgr.save(tmp_path / "m.safetensors", {"w": np.zeros(3)})
    finally:
        os.umask(old)

    assert (tmp_path / "m.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_name_of_another_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.safetensors"):
        ckptmgr.save(tmp_path / "m.h5", {"w": np.zeros(3)})

    assert names(tmp_path) == []


def test_metadata_travels_in_the_file(tmp_path):
    ckptmgr.save(tmp_path / "m.safetensors", {"w": np.zeros(3)}, metadata={"format": "pt"})

    with ckptmgr.open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        assert checkpoint.metadata["format"] == "pt"
        assert checkpoint.info is None
        assert checkpoint.verify() == []


def test_metadata_cannot_take_the_place_of_the_skeleton_nor_show_it(tmp_path):
    with pytest.raises(ValueError, match="'ckptmgr'"):
        ckptmgr.save(tmp_path / "m.safetensors", {"w": np.zeros(3)}, metadata={"ckptmgr": "mine"})
    ckptmgr.save(tmp_path / "m.safetensors", {"model": {"w": np.zeros(3)}}, metadata={"format": "pt"})

    with ckptmgr.open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        assert checkpoint.metadata == {"format": "pt"}


def test_the_folder_one_is_in_is_a_place_like_others(tmp_path, monkeypatch):
    ckptmgr.save(f"{tmp_path}/", {"w": np.ones(3)})
    (tmp_path / "deeper").mkdir()
    monkeypatch.chdir(tmp_path / "deeper")

    assert ckptmgr.load("..")["w"].tolist() == [1, 1, 1]
    with pytest.raises(FileNotFoundError, match="deeper"):
        ckptmgr.load(".")


def test_a_run_is_no_checkpoint_and_the_error_says_what_to_open(tmp_path):
    CheckpointManager(tmp_path / "run").save(1, {"w": np.ones(3)})

    with pytest.raises(FileNotFoundError, match="open one step's folder"):
        ckptmgr.load(tmp_path / "run")


def test_verifying_a_foreign_file_fast_reads_no_tensor(tmp_path, monkeypatch):
    save_file({"w": np.ones(3)}, tmp_path / "m.safetensors")
    monkeypatch.setattr("ckptmgr.transfer.read", None)

    with ckptmgr.open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        assert checkpoint.verify(full=False) == []


def test_a_tensor_that_is_not_there_is_told_with_near_names(tmp_path):
    ckptmgr.save(tmp_path / "m.safetensors", {"encoder.weight": np.ones(3), "b": np.zeros(2)})

    with (
        ckptmgr.open_checkpoint(tmp_path / "m.safetensors") as checkpoint,
        pytest.raises(KeyError, match=r"near: 'encoder\.weight'"),
    ):
        checkpoint.read("encoder.weigth")


def test_a_step_folder_and_an_attempt_folder_open_like_files(tmp_path):
    manager = CheckpointManager(tmp_path / "run")
    manager.save(4, {"model": {"w": np.arange(3)}, "epoch": 1}, metrics={"loss": 0.5})

    for place in (tmp_path / "run" / "step-00000004", manager.path(4)):
        with ckptmgr.open_checkpoint(place) as checkpoint:
            assert checkpoint.info.step == 4
            assert checkpoint.metrics == {"loss": 0.5}
            assert checkpoint.load()["epoch"] == 1


def test_what_is_not_there_and_what_is_unknown_are_told_apart(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")

    with pytest.raises(FileNotFoundError, match=r"m\.safetensors"):
        ckptmgr.load(tmp_path / "m.safetensors")
    with pytest.raises(BackendNotFoundError, match=r"notes\.txt"):
        ckptmgr.load(tmp_path / "notes.txt")


def test_a_truncated_file_is_corrupt(tmp_path):
    ckptmgr.save(tmp_path / "m.safetensors", {"w": np.zeros(300)})
    raw = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(raw[:-1])

    with pytest.raises(CorruptCheckpointError, match=r"m\.safetensors"):
        ckptmgr.load(tmp_path / "m.safetensors")


def test_a_relative_path_and_a_file_url_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    ckptmgr.save("m.safetensors", {"w": np.zeros(3)})

    assert list(ckptmgr.load("m.safetensors")) == ["w"]
    assert list(ckptmgr.load(f"file://{tmp_path}/m.safetensors")) == ["w"]


def test_a_scheme_that_is_not_supported_is_named():
    with pytest.raises(ValueError, match="carrier-pigeon"):
        ckptmgr.load("carrier-pigeon://x/m.safetensors")


def test_a_link_that_the_caller_names_is_followed(tmp_path):
    (tmp_path / "blobs").mkdir()
    ckptmgr.save(tmp_path / "blobs" / "m.safetensors", {"w": np.ones(3)})
    (tmp_path / "blobs" / "m.safetensors").rename(tmp_path / "blobs" / "3f9a")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blobs" / "3f9a")

    assert ckptmgr.load(tmp_path / "model.safetensors")["w"].tolist() == [1, 1, 1]


def test_a_foreign_file_is_read_through_a_little_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("ckptmgr.checkpoint.BATCH_NBYTES", 100)
    ckptmgr.save(tmp_path / "m.safetensors", {f"w{i}": np.zeros(8) for i in range(5)} | {"big": np.zeros(99)})
    seen: list[tuple[int, int]] = []

    with ckptmgr.open_checkpoint(tmp_path / "m.safetensors") as checkpoint:
        assert checkpoint.verify(progress=lambda done, total: seen.append((done, total))) == []

    total = (5 * 8 + 99) * 8
    assert seen[-1] == (total, total)
    assert len(seen) == 6


def test_a_manifest_json_of_another_tool_makes_no_step(tmp_path):
    ckptmgr.save(f"{tmp_path}/", {"w": np.arange(3)})
    (tmp_path / "manifest.json").write_text("{}")

    assert list(ckptmgr.load(tmp_path)) == ["w"]


def test_a_single_file_that_replaces_a_set_is_never_shadowed_by_an_index_without_its_shards(tmp_path, monkeypatch):
    state = {name: np.arange(1000) for name in "abc"}
    ckptmgr.save(f"{tmp_path}/", state, max_file_nbytes=8000)
    seen = []
    unlink = os.unlink
    monkeypatch.setattr(os, "unlink", lambda name, **options: (unlink(name, **options), seen.append(ckptmgr.load(tmp_path))))

    ckptmgr.save(f"{tmp_path}/", state)

    assert [list(found) for found in seen] == [["a", "b", "c"]] * len(seen)
    assert len(seen) >= 4


def test_a_state_dict_of_torch_makes_a_plain_file(tmp_path):
    module = torch.nn.Linear(3, 2)
    ckptmgr.save(tmp_path / "m.safetensors", module.state_dict())
    other = torch.nn.Linear(3, 2)

    ckptmgr.load(tmp_path / "m.safetensors", into=other)

    assert b"__metadata__" not in (tmp_path / "m.safetensors").read_bytes()
    assert torch.equal(other.weight, module.weight)


def test_a_generator_beside_tensors_comes_back_as_one(tmp_path):
    generator = torch.Generator()
    generator.manual_seed(7)
    ckptmgr.save(tmp_path / "m.safetensors", {"rng": generator, "w": torch.zeros(2)})
    fresh = torch.Generator()

    ckptmgr.load(tmp_path / "m.safetensors", into={"rng": fresh, "w": torch.zeros(2)})

    assert torch.equal(fresh.get_state(), generator.get_state())


def test_a_folder_of_links_opens_on_request_and_is_refused_otherwise(tmp_path):
    golden = Path(__file__).parent / "golden" / "safetensors" / "hf_sharded"
    for number, path in enumerate(sorted(golden.iterdir())):  # as a Hugging Face cache keeps them
        (tmp_path / "blobs").mkdir(exist_ok=True)
        (tmp_path / "snapshot").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "blobs" / str(number))
        (tmp_path / "snapshot" / path.name).symlink_to(Path("..") / "blobs" / str(number))

    with pytest.raises(FileNotFoundError, match="follow_links"):
        ckptmgr.load(tmp_path / "snapshot")
    followed = ckptmgr.load(tmp_path / "snapshot", storage_options={"follow_links": True})

    expected = ckptmgr.load(golden)
    assert list(followed) == list(expected)
    assert all(followed[name].tobytes() == expected[name].tobytes() for name in expected)


def test_what_a_load_is_asked_for_is_what_it_gives(tmp_path):
    ckptmgr.save(tmp_path / "m.safetensors", {"old": {"w": np.ones(3, np.float32), "b": np.ones(2)}})
    seen: list[tuple[int, int]] = []
    ask = {"select": "new/w", "rename": [("old", "new")], "progress": lambda *counts: seen.append(counts)}
    mine = {"new": {"w": np.zeros(3, np.float64)}}

    with pytest.raises(StateMismatchError):
        ckptmgr.load(tmp_path / "m.safetensors", mine, **ask)
    assert ckptmgr.load(tmp_path / "m.safetensors", mine, **ask, cast="same_kind")["new"]["w"].tolist() == [1, 1, 1]
    assert ckptmgr.load(tmp_path / "m.safetensors", {"c": 7}, strict=False) == {"c": 7}
    assert seen[-1] == (12, 12)


def test_progress_of_a_save_reaches_the_total(tmp_path):
    seen: list[tuple[int, int]] = []

    ckptmgr.save(tmp_path / "m.safetensors", {"w": np.zeros(300)}, progress=lambda *counts: seen.append(counts))

    assert seen[-1][0] == seen[-1][1] >= 2400


def test_a_file_in_the_home_folder_may_be_named_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ckptmgr.save("~/m.safetensors", {"w": np.ones(3)})

    assert names(tmp_path) == ["m.safetensors"]
    assert ckptmgr.load("~/m.safetensors")["w"].tolist() == [1, 1, 1]


def test_a_step_folder_is_checked_as_the_caller_says(manager):
    path = Path(manager.save(1, {"w": np.zeros(3)}).path)
    raw = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(raw[:-1] + b"x")

    assert ckptmgr.open_checkpoint(path, verify="off").load()["w"].shape == (3,)
    with pytest.raises(CorruptCheckpointError):
        ckptmgr.open_checkpoint(path).load()


def test_an_attempt_that_was_replaced_or_never_committed_does_not_open(manager):
    old = manager.save(1, {"w": np.zeros(3)}).path
    manager.save(1, {"w": np.ones(3)}, overwrite=True)
    unfinished = commit.begin(manager.folder, "step-00000002", 2, overwrite=False)
    unfinished.folder.write("model.safetensors", b"half")

    for place in (old, Path(manager.folder.location()) / "step-00000002"):
        with pytest.raises(CorruptCheckpointError, match="never committed, or is deleted"):
            ckptmgr.load(place)


@pytest.mark.parametrize("how", ["deleted", "overwritten"])
def test_a_step_folder_that_goes_while_it_is_open_is_gone_and_not_damaged(manager, how):
    checkpoint = ckptmgr.open_checkpoint(Path(manager.save(1, {"w": np.zeros(3)}).path).parent)
    if how == "deleted":
        manager.delete(1)
    else:
        manager.save(1, {"w": np.ones(3)}, overwrite=True)

    with pytest.raises(StepNotFoundError, match="deleted or overwritten"):
        checkpoint.load()


def test_the_pins_of_a_step_are_told_by_its_folder(manager):
    path = manager.save(1, {}).path
    manager.pin(1, "paper")

    assert ckptmgr.open_checkpoint(path).info.pins == {"paper"}


def test_a_name_that_is_only_an_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not end in"):
        ckptmgr.save(tmp_path / ".safetensors", {"w": np.zeros(3)})

    assert names(tmp_path) == []


def test_what_a_plain_file_could_not_say_travels_in_the_file(tmp_path):
    shared, generator = np.arange(3), torch.Generator()
    ckptmgr.save(tmp_path / "tied.safetensors", {"a": shared, "b": shared})
    ckptmgr.save(tmp_path / "rng.safetensors", {"rng": generator})

    tied = ckptmgr.load(tmp_path / "tied.safetensors")
    assert tied["a"] is tied["b"]
    assert torch.equal(ckptmgr.load(tmp_path / "rng.safetensors")["rng"].get_state(), generator.get_state())
