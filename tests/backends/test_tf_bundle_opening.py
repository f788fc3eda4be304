"""What a user may name to open a checkpoint, and what its tensors are called then."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ckptmgr
from ckptmgr import backend as backends
from ckptmgr.checksum import crc32c
from ckptmgr.errors import BackendNotFoundError, CorruptCheckpointError, UnsupportedTensorError
from ckptmgr.storage import Folder, PosixStore
from ckptmgr_tf_bundle import TFBundleBackend, statefile, table
from ckptmgr_tf_bundle.dtypes import CODES
from ckptmgr_tf_bundle.entry import build_entry, build_header

GOLDEN = Path(__file__).parents[1] / "golden" / "tf_bundle"
KERAS = GOLDEN / "keras_small"
KERNEL = "layer_with_weights-0/kernel"


@pytest.mark.parametrize(
    "path",
    [
        "training_2/cp-0050.ckpt",
        "training_2/cp-0050.ckpt.index",
        "training_2/cp-0050.ckpt.data-00000-of-00001",
        "training_2",
        "training_2/",
        "training_2/checkpoint",
    ],
)
def test_a_checkpoint_opens_by_prefix_file_folder_or_state_file(path: str) -> None:
    with ckptmgr.open_checkpoint(f"{KERAS}/{path}") as checkpoint:
        assert checkpoint.backend == "tf_bundle"
        assert checkpoint.specs[KERNEL].shape == (784, 8)
        newest = ckptmgr.load(KERAS / "training_2/cp-0050.ckpt")["layer_with_weights-0"]["kernel"]
        assert np.array_equal(checkpoint.read(KERNEL), newest)


@pytest.mark.parametrize("path", ["savedmodel/module", "savedmodel/my_model", "savedmodel/my_model/variables/variables"])
def test_a_saved_model_opens_by_its_folder_or_the_prefix_in_it(path: str) -> None:
    with ckptmgr.open_checkpoint(GOLDEN / path) as checkpoint:
        assert len(checkpoint.specs) > 0
        assert checkpoint.verify() == []


def test_a_file_of_a_saved_model_leads_to_its_variables() -> None:
    with ckptmgr.open_checkpoint(GOLDEN / "savedmodel/module/saved_model.pb") as checkpoint:
        assert checkpoint.backend == "tf_bundle"


def test_without_a_state_file_the_only_checkpoint_is_opened(tmp_path: Path) -> None:
    copy(tmp_path, "cp-0005.ckpt")

    assert ckptmgr.load(tmp_path)["layer_with_weights-0"]["kernel"].shape == (784, 8)


def test_without_a_state_file_several_checkpoints_are_listed(tmp_path: Path) -> None:
    copy(tmp_path, "cp-0005.ckpt", "cp-0010.ckpt")

    with pytest.raises(
        FileNotFoundError, match=r"several checkpoints \('cp-0005.ckpt', 'cp-0010.ckpt'\).*open one by its prefix"
    ):
        ckptmgr.load(tmp_path)


def test_a_stale_state_file_leads_to_the_newest_that_is_there(tmp_path: Path) -> None:
    copy(tmp_path, "cp-0005.ckpt", "cp-0010.ckpt")
    state(tmp_path, "cp-0005.ckpt", "cp-0010.ckpt", "cp-0015.ckpt")

    assert loaded_epoch(tmp_path) == 10


def test_absolute_paths_of_a_folder_that_was_moved_are_found(tmp_path: Path) -> None:
    copy(tmp_path, "cp-0005.ckpt", "cp-0010.ckpt")
    state(tmp_path, "/once/upon/a/time/cp-0005.ckpt")

    assert loaded_epoch(tmp_path) == 5


def test_a_state_file_leads_nowhere_outside_its_folder(tmp_path: Path) -> None:
    copy(tmp_path, "cp-0005.ckpt")
    inside = tmp_path / "inside"
    inside.mkdir()
    state(inside, "../cp-0005.ckpt")

    with pytest.raises(FileNotFoundError, match="no TensorFlow checkpoint"):
        ckptmgr.load(inside / "checkpoint")


def test_a_state_file_leads_into_folders_below_its_own(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    copy(tmp_path / "a" / "b", "cp-0005.ckpt")
    state(tmp_path, "a/b/cp-0005.ckpt")

    assert ckptmgr.load(tmp_path / "checkpoint")["layer_with_weights-0"]["kernel"].shape == (784, 8)


def test_a_managed_run_is_not_opened_as_one_checkpoint(tmp_path: Path) -> None:
    with ckptmgr.CheckpointManager(tmp_path, backend="tf_bundle") as manager:
        manager.save(1, {"w": np.zeros(1), "step": 3})

    with pytest.raises((FileNotFoundError, BackendNotFoundError)):
        ckptmgr.load(tmp_path)


def test_a_damaged_state_file_matters_only_if_it_is_needed(tmp_path: Path) -> None:
    copy(tmp_path, "cp-0005.ckpt")
    (tmp_path / "checkpoint").write_bytes(b"model_checkpoint_path: what?")

    assert loaded_epoch(tmp_path) == 5
    copy(tmp_path, "cp-0010.ckpt")
    with pytest.raises(CorruptCheckpointError, match="checkpoint"):
        ckptmgr.load(tmp_path)


def test_a_giant_state_file_is_refused_unread(tmp_path: Path) -> None:
    copy(tmp_path, "cp-0005.ckpt", "cp-0010.ckpt")
    with (tmp_path / "checkpoint").open("wb") as file:
        file.truncate(1 << 40)

    with pytest.raises(CorruptCheckpointError, match="over the limit"):
        TFBundleBackend().open(Folder(PosixStore(tmp_path)), "")


@pytest.mark.parametrize("padding", [0, 10_000])
def test_a_checkpoint_of_the_first_format_is_told_apart(tmp_path: Path, padding: int) -> None:
    start = b"\x00\x00\x85\x01\x0a\x82\x01" + bytes(100 + padding)
    (tmp_path / "model.ckpt-1").write_bytes(start + bytes.fromhex("57fb808b247547db"))

    with pytest.raises(BackendNotFoundError, match=r"first format.*tf\.compat\.v1"):
        ckptmgr.load(tmp_path / "model.ckpt-1")


def test_a_file_that_only_begins_like_the_first_format_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"\x00\x00\x85\x01\x0a" + bytes(100))

    with pytest.raises(CorruptCheckpointError, match="no index, no data file"):
        ckptmgr.load(tmp_path / "x.bin")


def test_names_are_those_of_the_objects() -> None:
    with ckptmgr.open_checkpoint(GOLDEN / "keras3/ck-1") as checkpoint:
        assert "optimizer/_trainable_variables/0" in checkpoint.specs
        assert checkpoint.aliases["model/_functional/_operations/1/_kernel"] == "optimizer/_trainable_variables/0"


def test_names_can_be_the_files_own_keys() -> None:
    with ckptmgr.open_checkpoint(GOLDEN / "object_graph/nested-1", backend=TFBundleBackend(names="keys")) as checkpoint:
        assert "lst/1/k/.ATTRIBUTES/VARIABLE_VALUE" in checkpoint.specs
        assert "_CHECKPOINTABLE_OBJECT_GRAPH" in checkpoint.specs
        assert checkpoint.aliases == {}


def test_names_of_a_name_based_checkpoint_are_its_variables() -> None:
    with ckptmgr.open_checkpoint(GOLDEN / "v1_saver") as checkpoint:
        assert {"global_step", "w"} <= set(checkpoint.specs)


def test_a_damaged_object_graph_leaves_the_keys(tmp_path: Path) -> None:
    for file in (GOLDEN / "object_graph").glob("nested-1.*"):
        shutil.copy(file, tmp_path)
    data = tmp_path / "nested-1.data-00000-of-00001"
    raw = data.read_bytes()
    data.write_bytes(raw.replace(b"save_counter", b"save_cOunter"))

    with pytest.raises(CorruptCheckpointError) as damage:
        ckptmgr.load(tmp_path / "nested-1")
    with ckptmgr.open_checkpoint(tmp_path / "nested-1", backend=TFBundleBackend(names="keys")) as checkpoint:
        assert checkpoint.read("step/.ATTRIBUTES/VARIABLE_VALUE").shape == ()

    assert damage.value.tensor == "_CHECKPOINTABLE_OBJECT_GRAPH"
    assert "names='keys'" in damage.value.__notes__[0]


def test_a_variant_is_carried_and_not_decoded() -> None:
    with ckptmgr.open_checkpoint(GOLDEN / "variant") as checkpoint:
        (name,) = [name for name in checkpoint.blobs if "iter" in name.lower()]
        with pytest.raises(UnsupportedTensorError, match="blobs"):
            checkpoint.read(name)
        assert checkpoint.blobs[name].startswith(b"TFVARIANT")
        assert checkpoint.load() is not None


def test_a_nested_load_has_the_objects_nesting() -> None:
    state = ckptmgr.load(GOLDEN / "object_graph/nested-1")

    assert set(state) == {"lst", "net", "save_counter", "step"}
    assert set(state["net"]["table"]) == {"a/b", "plain", "x.y"}
    assert state["net"]["tied"] is state["net"]["blocks"]["0"]["w"]


def test_restoring_imports_no_tensorflow() -> None:
    code = f"""
import sys, ckptmgr
state = ckptmgr.load({str(KERAS / "training_2")!r})
assert state["layer_with_weights-0"]["kernel"].shape == (784, 8)
assert not {{"tensorflow", "keras", "tf_keras", "torch", "jax"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_backend_is_found_by_name() -> None:
    assert backends.find("tf_bundle") == TFBundleBackend()


def copy(folder: Path, *prefixes: str) -> None:
    for prefix in prefixes:
        for file in (KERAS / "training_2").glob(f"{prefix}.*"):
            shutil.copy(file, folder)


def state(folder: Path, *paths: str) -> None:
    (folder / "checkpoint").write_bytes(statefile.format(statefile.State(paths[-1], paths)))


def loaded_epoch(folder: Path) -> int:
    kernel = ckptmgr.load(folder)["layer_with_weights-0"]["kernel"]
    epochs = range(5, 55, 5)
    return next(
        epoch
        for epoch in epochs
        if np.array_equal(kernel, ckptmgr.load(KERAS / f"training_2/cp-{epoch:04d}.ckpt")["layer_with_weights-0"]["kernel"])
    )


def test_entries_of_the_same_bytes_are_one_tensor(tmp_path: Path) -> None:
    data = np.arange(4, dtype=np.float32)
    write(tmp_path, {f"w{index}": placed(data, offset=0) for index in range(3)}, data.tobytes())

    with ckptmgr.open_checkpoint(tmp_path / "cp") as checkpoint:
        assert checkpoint.aliases == {"w1": "w0", "w2": "w0"}
        assert checkpoint.nbytes == 16


def test_a_verification_names_every_damaged_tensor(tmp_path: Path) -> None:
    data = np.arange(4, dtype=np.float32)
    good = {f"w{index}": placed(data, offset=16 * index) for index in range(4)}
    write(tmp_path, {**good, "broken": b"\xff\xff"}, data.tobytes() + bytes(16) + data.tobytes() + bytes(8))

    with ckptmgr.open_checkpoint(tmp_path / "cp") as checkpoint:
        assert [problem.tensor for problem in checkpoint.verify()] == ["broken", "w1", "w3"]
        assert [problem.tensor for problem in checkpoint.verify(full=False)] == ["broken"]
        assert checkpoint.nbytes == 64
        assert "5 tensors, 64 bytes" in repr(checkpoint)
        assert checkpoint.read("w2").tolist() == [0, 1, 2, 3]


def test_tensors_that_claim_more_than_the_files_hold_are_refused(tmp_path: Path) -> None:
    data = np.zeros(1 << 16, np.uint8)
    write(tmp_path, {f"w{index}": placed(data[index:], offset=index) for index in range(3)}, data.tobytes())

    with pytest.raises(CorruptCheckpointError, match="claim 196605 bytes, and its data files hold 65536"):
        ckptmgr.open_checkpoint(tmp_path / "cp")


def test_a_state_file_of_many_entries_in_other_folders_is_read_soon(tmp_path: Path) -> None:
    copy(tmp_path, "cp-0005.ckpt")
    state(tmp_path, *(f"a{index}/b" for index in range(50_000)))

    begun = time.process_time()
    with ckptmgr.open_checkpoint(tmp_path) as checkpoint:
        assert KERNEL in checkpoint.specs

    assert time.process_time() - begun < 1


def placed(array: np.ndarray, offset: int) -> bytes:
    return build_entry(CODES[array.dtype.name], array.shape, 0, offset, array.nbytes, crc32c(array))


def write(folder: Path, entries: dict[str, bytes], data: bytes) -> None:
    items = {b"": build_header(1), **{key.encode(): value for key, value in entries.items()}}
    (folder / "cp.index").write_bytes(table.encode(sorted(items.items())))
    (folder / "cp.data-00000-of-00001").write_bytes(data)
