"""`save`, `load` and `open_checkpoint` with a format of one's own choice: names without an ending, and what is not installed."""

from pathlib import Path

import numpy as np
import pytest
from conversions import FILES, FORMATS
from frameworks import torch
from prefixed import PrefixedBackend

import ckptmgr
from ckptmgr import BackendNotFoundError, CheckpointManager, StateMismatchError, UnsupportedTensorError
from ckptmgr.memory import MemorySource
from ckptmgr_safetensors import SafetensorsBackend

STATE = {"a": np.arange(4), "b": np.ones(4), "c": np.zeros(4)}


@pytest.fixture
def prefixed(monkeypatch):
    """A format that is installed, too."""
    backend = PrefixedBackend()
    others = {"prefixed": backend, "safetensors": SafetensorsBackend()}
    monkeypatch.setattr("ckptmgr.backend.available", lambda: sorted(others, reverse=True))
    monkeypatch.setattr("ckptmgr.backend.find", others.__getitem__)
    return backend


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_name_without_an_ending_is_the_stem_of_the_files(tmp_path, prefixed):
    paths = ckptmgr.save(tmp_path / "cp-0005.ckpt", STATE, backend=prefixed)

    assert paths == [str(tmp_path / "cp-0005.ckpt.0.part"), str(tmp_path / "cp-0005.ckpt.top")]
    assert names(tmp_path) == ["cp-0005.ckpt.0.part", "cp-0005.ckpt.top"]


@pytest.mark.parametrize("place", ["ckpts/", "ckpts"], ids=["slash", "a folder that is there"])
def test_in_a_folder_the_stem_is_model(tmp_path, prefixed, place):
    (tmp_path / "ckpts").mkdir()

    ckptmgr.save(f"{tmp_path}/{place}", STATE, backend=prefixed)

    assert names(tmp_path / "ckpts") == ["model.0.part", "model.top"]


def test_a_folder_below_the_home_folder_is_one(tmp_path, prefixed, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ckpts").mkdir()

    ckptmgr.save("~/ckpts", STATE, backend=prefixed)

    assert names(tmp_path / "ckpts") == ["model.0.part", "model.top"]


def test_no_name_at_all_is_refused(prefixed):
    with pytest.raises(ValueError, match="end the path in '/' for a folder"):
        ckptmgr.save("", STATE, backend=prefixed)


@pytest.mark.parametrize("name", ["cp", "cp.top"], ids=["prefix", "index"])
def test_a_prefix_is_detected_beside_files_of_another_format(tmp_path, prefixed, name):
    ckptmgr.save(tmp_path / "cp", STATE, backend=prefixed, max_file_nbytes=40)
    ckptmgr.save(tmp_path / "other.safetensors", {"other": np.ones(1)})

    assert {key: found.tolist() for key, found in ckptmgr.load(tmp_path / name).items()} == {
        "a": [0, 1, 2, 3],
        "b": [1, 1, 1, 1],
        "c": [0, 0, 0, 0],
    }


def test_a_format_with_a_fixed_ending_takes_no_prefix(tmp_path, prefixed):
    ckptmgr.save(tmp_path / "other.safetensors", STATE)

    with pytest.raises(BackendNotFoundError, match=r"recognizes .*other'"):
        ckptmgr.load(tmp_path / "other")


def test_a_smaller_set_under_a_prefix_leaves_no_stale_file_and_no_other_is_touched(tmp_path, prefixed):
    ckptmgr.save(tmp_path / "cp", STATE, backend=prefixed, max_file_nbytes=40)
    ckptmgr.save(tmp_path / "cp-2", STATE, backend=prefixed)
    assert names(tmp_path) == ["cp-2.0.part", "cp-2.top", "cp.0.part", "cp.1.part", "cp.2.part", "cp.top"]

    ckptmgr.save(tmp_path / "cp", STATE, backend=prefixed)

    assert names(tmp_path) == ["cp-2.0.part", "cp-2.top", "cp.0.part", "cp.top"]
    assert ckptmgr.load(tmp_path / "cp")["a"].tolist() == [0, 1, 2, 3]


def test_plain_values_are_shown_to_the_format(tmp_path, prefixed):
    ckptmgr.save(tmp_path / "cp", {"w": np.ones(2), "epoch": 3, "opt": [{"lr": 0.5}, None]}, backend=prefixed)

    assert prefixed.contents.scalars == {("epoch",): 3, ("opt", 0, "lr"): 0.5}


def test_string_tensors_are_parts_with_their_values_and_refused_where_they_have_no_place(tmp_path):
    with pytest.raises(UnsupportedTensorError, match="'vocab'") as caught:
        ckptmgr.save(tmp_path / "m.safetensors", {"vocab": np.array(["a", "b"]), "w": np.ones(2)})

    assert caught.value.tensor == "vocab"
    assert names(tmp_path) == []


def test_the_caller_may_choose_the_format_by_name_or_object(tmp_path):
    ckptmgr.save(tmp_path / "m.safetensors", STATE)
    (tmp_path / "m.safetensors").rename(tmp_path / "weights.bin")

    for backend in ("safetensors", SafetensorsBackend()):
        assert list(ckptmgr.load(tmp_path / "weights.bin", backend=backend)) == ["a", "b", "c"]
        with ckptmgr.open_checkpoint(tmp_path / "weights.bin", backend=backend) as checkpoint:
            assert checkpoint.backend == "safetensors"


def test_a_chosen_format_is_not_asked_whether_it_recognizes_the_file(tmp_path, monkeypatch):
    ckptmgr.save(tmp_path / "m.safetensors", STATE)
    monkeypatch.setattr("ckptmgr.backend.detect", None)
    monkeypatch.setattr(SafetensorsBackend, "recognizes", None)

    assert list(ckptmgr.load(tmp_path / "m.safetensors", backend="safetensors")) == ["a", "b", "c"]


def test_a_chosen_format_opens_the_files_of_a_managed_step_as_any_others(manager):
    path = manager.save(4, {"model": {"w": np.arange(3)}}).path

    with ckptmgr.open_checkpoint(path, backend="safetensors") as checkpoint:
        assert checkpoint.info is None
        assert list(checkpoint.specs) == ["model.w"]


def test_a_format_that_is_not_there_is_told_when_it_is_chosen(tmp_path):
    with pytest.raises(BackendNotFoundError, match="no backend 'nothing' is installed"):
        ckptmgr.load(tmp_path / "m.safetensors", backend="nothing")


def test_what_is_carried_and_not_decoded_says_where_its_bytes_are(tmp_path, monkeypatch):
    ckptmgr.save(tmp_path / "m.safetensors", STATE)
    monkeypatch.setattr(SafetensorsBackend, "open", lambda self, folder, path: MemorySource({}, {}, blobs=Blobs(variant=b"raw")))

    with (
        ckptmgr.open_checkpoint(tmp_path / "m.safetensors") as checkpoint,
        pytest.raises(UnsupportedTensorError, match=r"raw bytes are in \.blobs\['variant'\]") as caught,
    ):
        checkpoint.read("variant")

    assert caught.value.tensor == "variant"
    assert checkpoint.blobs["variant"] == b"raw"


class Blobs(dict[str, bytes]):
    """Reads a value when it is asked for: nobody may ask for all of them."""

    def values(self):
        raise AssertionError("nobody needs all blobs")

    items = values


def test_lazy_blobs_are_not_read_by_a_restore(tmp_path, monkeypatch):
    ckptmgr.save(tmp_path / "m.safetensors", STATE)
    monkeypatch.setattr(SafetensorsBackend, "open", lambda self, folder, path: MemorySource({}, {}, blobs=Blobs(variant=b"raw")))

    assert ckptmgr.load(tmp_path / "m.safetensors") == {}


def test_a_folder_of_several_formats_must_be_told_apart(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "model.safetensors", {"w": np.zeros(1)})
    ckptmgr.save(tmp_path / "model.h5", {"w": np.ones(1)}, backend="hdf5")

    with pytest.raises(BackendNotFoundError, match="several formats \\('hdf5', 'safetensors'\\)"):
        ckptmgr.load(tmp_path)

    assert ckptmgr.load(tmp_path, backend="hdf5")["w"].tolist() == [1]
    assert ckptmgr.load(tmp_path / "model.safetensors")["w"].tolist() == [0]


@pytest.mark.parametrize("backend", [*FORMATS, "torch"])
def test_a_state_of_nothing_is_no_empty_dict(tmp_path, backend):
    """In a file, in a step, and converted: as it was, and never taken for a file of another tool."""
    path, copy, run = tmp_path / {"torch": "a.pt", **FILES}[backend], tmp_path / "copy.safetensors", tmp_path / "run"
    ckptmgr.save(path, None, backend=backend)
    with CheckpointManager(run, backend=backend) as manager:
        manager.save(1, None)

        assert manager.restore().state is None
    ckptmgr.convert(path, copy, to="safetensors")
    assert ckptmgr.load(path) is ckptmgr.load(copy) is ckptmgr.load(path, into=None) is None
    with pytest.raises(StateMismatchError):
        ckptmgr.load(path, into={"w": np.zeros(1)})


def test_what_torch_saves_of_nothing_is_nothing(tmp_path):
    torch.save(None, tmp_path / "a.pt")
    ckptmgr.save(tmp_path / "b.pt", None, backend="torch")

    assert ckptmgr.load(tmp_path / "a.pt") is None
    assert torch.serialization.load(tmp_path / "b.pt") is None


@pytest.mark.parametrize("through", ["", "other.h5", "other.safetensors", "other.pt", "run"])
def test_numbers_that_another_tool_wrote_as_arrays_become_what_into_has(tmp_path, through):
    np.savez(tmp_path / "m.npz", lr=np.float32(0.5), step=5, flag=True)
    path = tmp_path / (through or "m.npz")
    if through:
        ckptmgr.convert(tmp_path / "m.npz", path, step=1 if through == "run" else None)

    into = {"lr": 0.0, "step": 0, "flag": False}
    state = CheckpointManager(path).restore(into=into).state if through == "run" else ckptmgr.load(path, into=into)

    assert state == {"lr": 0.5, "step": 5, "flag": True}
    assert [*map(type, state.values())] == [float, int, bool]
