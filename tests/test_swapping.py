"""`ckptmgr.swap_weights`: new weights in a copy of a whole-model file, everything else as it was."""

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import torch
from safetensors.numpy import save_file

import ckptmgr
from ckptmgr import CorruptCheckpointError, StateMismatchError, UnsupportedLeafError, swap_weights

GOLDEN = Path(__file__).parent / "golden" / "keras"
KERNEL = "layers/dense/kernel"
NEW = np.arange(32 * 64, dtype=np.float32).reshape(32, 64)
WHOLE = ["k2_tutorial.h5", "k2_tutorial.keras", "k3_tutorial.h5", "k3_tutorial.keras"]
WEIGHTS = "k3_tutorial.weights.h5"


def tensors(path: Path) -> dict[str, bytes]:
    with ckptmgr.open_checkpoint(path) as opened:
        return {name: opened.read(name).tobytes() for name in opened.specs}


def metadata(path: Path) -> dict[str, Any]:
    with ckptmgr.open_checkpoint(path) as opened:
        return dict(opened.metadata)


def ending(name: str) -> str:
    return name[name.index(".") :]


@pytest.mark.parametrize("name", [*WHOLE, "k2_tutorial_weightsonly.h5"])
def test_only_the_tensor_that_is_given_changes(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"new{ending(name)}"

    assert swap_weights(GOLDEN / name, {KERNEL: NEW}, path) == str(path)

    assert tensors(path) == {**tensors(GOLDEN / name), KERNEL: NEW.tobytes()}
    assert metadata(path) == metadata(GOLDEN / name)
    assert os.listdir(tmp_path) == [path.name]


def test_weights_alone_go_by_the_names_that_the_file_has(tmp_path: Path) -> None:
    path = tmp_path / "new.weights.h5"

    swap_weights(GOLDEN / WEIGHTS, {"layers/dense/vars/0": NEW}, path)

    assert tensors(path) == {**tensors(GOLDEN / WEIGHTS), "layers/dense/vars/0": NEW.tobytes()}


def test_a_nested_state_of_any_framework_is_taken_as_well(tmp_path: Path) -> None:
    swap_weights(GOLDEN / WHOLE[3], {"layers": {"dense": {"kernel": torch.from_numpy(NEW)}}}, tmp_path / "a.keras")

    assert tensors(tmp_path / "a.keras")[KERNEL] == NEW.tobytes()


def test_a_loaded_state_fits_its_own_file(tmp_path: Path) -> None:
    swap_weights(GOLDEN / WHOLE[3], ckptmgr.load(GOLDEN / WHOLE[3]), tmp_path / "a.keras")

    assert tensors(tmp_path / "a.keras") == tensors(GOLDEN / WHOLE[3])


def test_an_empty_state_gives_a_copy(tmp_path: Path) -> None:
    swap_weights(GOLDEN / WHOLE[0], {}, tmp_path / "a.h5")

    assert tensors(tmp_path / "a.h5") == tensors(GOLDEN / WHOLE[0])


def test_one_array_may_be_given_for_two_tensors(tmp_path: Path) -> None:
    shared = np.full(10, 7, np.float32)

    swap_weights(
        GOLDEN / WHOLE[3],
        {"layers/dense_1/bias": shared, "optimizer": {"dense_1_bias": {"momentum": shared}}},
        tmp_path / "a.keras",
    )

    found = tensors(tmp_path / "a.keras")
    assert found["layers/dense_1/bias"] == found["optimizer/dense_1_bias/momentum"] == shared.tobytes()


@pytest.mark.parametrize("value", [0.25, np.float32(0.25), np.array(0.25, np.float32)])
def test_a_number_takes_the_place_of_a_tensor_without_dimensions(tmp_path: Path, value: object) -> None:
    swap_weights(GOLDEN / WHOLE[3], {"optimizer/learning_rate": value, "optimizer/iteration": 3}, tmp_path / "a.keras")

    found = tensors(tmp_path / "a.keras")
    assert found["optimizer/learning_rate"] == np.float32(0.25).tobytes()
    assert found["optimizer/iteration"] == np.int64(3).tobytes()


def test_the_template_itself_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    shutil.copy(GOLDEN / WHOLE[3], path)

    swap_weights(path, {KERNEL: NEW}, path)

    assert tensors(path) == {**tensors(GOLDEN / WHOLE[3]), KERNEL: NEW.tobytes()}
    assert os.listdir(tmp_path) == ["model.keras"]


def test_members_of_an_archive_stay_byte_for_byte(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as target, zipfile.ZipFile(GOLDEN / WHOLE[3]) as held:
        for member in held.namelist():
            target.writestr(member, held.read(member))
        target.writestr("assets/layers/lookup/vocabulary.txt", "one\ntwo\n")

    swap_weights(tmp_path / "old.keras", {KERNEL: NEW}, tmp_path / "new.keras")

    with zipfile.ZipFile(tmp_path / "old.keras") as old, zipfile.ZipFile(tmp_path / "new.keras") as new:
        assert new.namelist() == old.namelist()
        assert all(new.read(name) == old.read(name) for name in old.namelist() if name != "model.weights.h5")


def test_a_model_of_an_unknown_class_takes_new_weights(tmp_path: Path) -> None:
    name, path = "k3_subclassed.keras", tmp_path / "a.keras"
    before = tensors(GOLDEN / name)

    swap_weights(GOLDEN / name, {"vars/0": np.full(12, 3, np.float32)}, path)

    assert tensors(path) == {**before, "vars/0": np.full(12, 3, np.float32).tobytes()}


def test_shards_become_one_file(tmp_path: Path) -> None:
    swap_weights(GOLDEN / "k3_tutorial_sharded.weights.json", {}, tmp_path / "a.weights.h5")

    assert tensors(tmp_path / "a.weights.h5") == tensors(GOLDEN / WEIGHTS)


def test_the_mode_of_the_file_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        swap_weights(GOLDEN / WHOLE[0], {}, tmp_path / "a.h5")
    finally:
        os.umask(old)

    assert (tmp_path / "a.h5").stat().st_mode & 0o777 == 0o640


def test_every_difference_is_listed_and_nothing_is_written(tmp_path: Path) -> None:
    state = {"layers/dense/kernal": NEW, "layers/dense/bias": np.zeros(3, np.float32), "layers/dense_1/bias": np.zeros(10)}

    with pytest.raises(StateMismatchError) as caught:
        swap_weights(GOLDEN / WHOLE[3], state, tmp_path / "a.keras")

    assert caught.value.unexpected == ("layers/dense/kernal",)
    assert [tuple(each) for each in caught.value.report.mismatched] == [
        ("layers/dense/bias", "float32[64]", "float32[3]"),
        ("layers/dense_1/bias", "float32[10]", "float64[10]"),
    ]
    assert "1 not in the template: 'layers/dense/kernal' (near: 'layers/dense/kernel'" in str(caught.value)
    assert "2 different: 'layers/dense/bias' (template float32[64], given float32[3])" in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", [None, "text", 1, True, np.random.default_rng(0), np.array(["a"] * 64)])
def test_what_is_no_such_tensor_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(StateMismatchError, match="'layers/dense/bias'"):
        swap_weights(GOLDEN / WHOLE[3], {"layers/dense/bias": value}, tmp_path / "a.keras")


@pytest.mark.parametrize("value", [1.5, True])
def test_a_number_of_another_kind_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(StateMismatchError, match=r"'optimizer/iteration' \(template int64\[\], given"):
        swap_weights(GOLDEN / WHOLE[3], {"optimizer/iteration": value}, tmp_path / "a.keras")


def test_a_number_that_is_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateMismatchError, match=r"'optimizer/iteration' is int64\[\], too small for 1180591620717411303424"):
        swap_weights(GOLDEN / WHOLE[3], {"optimizer/iteration": 1 << 70}, tmp_path / "a.keras")


def test_what_cannot_be_stored_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLeafError, match="layers/dense/bias"):
        swap_weights(GOLDEN / WHOLE[3], {"layers": {"dense": {"bias": object()}}}, tmp_path / "a.keras")


@pytest.mark.parametrize("name", ["a.h5", "a", ".keras", "a.keras/"])
def test_the_copy_must_be_named_like_the_template(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"does not end in '\.keras'"):
        swap_weights(GOLDEN / WHOLE[3], {}, f"{tmp_path}/{name}")


def test_a_format_without_whole_models_is_told(tmp_path: Path) -> None:
    save_file({"a": np.ones(3)}, tmp_path / "a.safetensors")

    with pytest.raises(ValueError, match=r"'safetensors', whose files hold weights alone.*SavedModel.*variables/variables"):
        swap_weights(tmp_path / "a.safetensors", {}, tmp_path / "b.safetensors")


def test_an_hdf5_file_of_another_kind_is_told(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "a.h5", {"a": np.ones(3)}, backend="hdf5")

    with pytest.raises(ValueError, match="no file that Keras saved"):
        swap_weights(tmp_path / "a.h5", {}, tmp_path / "b.h5")


def test_a_template_that_is_not_there_or_damaged_is_told(tmp_path: Path) -> None:
    (tmp_path / "cut.keras").write_bytes((GOLDEN / WHOLE[3]).read_bytes()[:5000])

    with pytest.raises(FileNotFoundError, match=r"none\.keras"):
        swap_weights(tmp_path / "none.keras", {}, tmp_path / "a.keras")
    with pytest.raises(CorruptCheckpointError, match=r"cut\.keras"):
        swap_weights(tmp_path / "cut.keras", {}, tmp_path / "a.keras")


def test_a_template_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.keras").symlink_to(GOLDEN / WHOLE[3])

    swap_weights(tmp_path / "link.keras", {}, tmp_path / "a.keras")

    assert tensors(tmp_path / "a.keras") == tensors(GOLDEN / WHOLE[3])
