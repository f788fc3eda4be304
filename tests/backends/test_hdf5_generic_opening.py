"""Everything that the backend opens: Keras' files among them, without h5py where our own parser knows all of it."""

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest

import ckptmgr
from ckptmgr import transfer
from ckptmgr.errors import CheckpointError, CorruptCheckpointError, MissingDependencyError
from ckptmgr.layout import Contents, Part
from ckptmgr.memory import MemorySource
from ckptmgr.storage import Folder, PosixStore
from ckptmgr.transfer import Want
from ckptmgr_hdf5 import HDF5Backend, opening
from ckptmgr_hdf5.faults import Unknown

GOLDEN = Path(__file__).parents[1] / "golden" / "keras"
BACKEND = HDF5Backend()
KERAS = sorted(path.name for path in GOLDEN.iterdir() if path.suffix in (".h5", ".keras") or path.name.endswith(".weights.json"))
WITHOUT_H5PY = """
import sys
sys.modules["h5py"] = None
import numpy as np, ckptmgr
from ckptmgr_hdf5 import HDF5Backend
ckptmgr.save(sys.argv[1], {"w": np.arange(3), "deep": [{"s": np.array(["x"], object)}], "n": 1}, backend=HDF5Backend())
print(ckptmgr.load(sys.argv[1], backend=HDF5Backend()))
print(len(ckptmgr.open_checkpoint(sys.argv[2], backend=HDF5Backend()).specs))
"""


def here(folder: Path) -> Folder:
    return Folder(PosixStore(folder))


@pytest.mark.parametrize("name", KERAS)
def test_files_of_keras_are_recognized_and_every_tensor_is_read(name: str) -> None:
    head = (GOLDEN / name).read_bytes()[:4096]

    assert BACKEND.recognizes(name, head, ())
    with BACKEND.open(here(GOLDEN), name) as source:
        read, _ = transfer.read(source, map(Want, source.specs))
        assert source.specs
        for tensor, array in zip(source.specs, read, strict=True):
            assert array.tobytes() == source.read(tensor).tobytes()
            assert source.extents(tensor)
        assert source.metadata["keras"]
        assert set(source.paths) == set(source.specs)


def test_a_model_of_keras_has_names_that_a_person_knows() -> None:
    with BACKEND.open(here(GOLDEN), "k3_tutorial.keras") as source:
        assert [*source.specs][:2] == ["layers/dense/kernel", "layers/dense/bias"]
        assert source.paths["layers/dense/kernel"] == ("layers", "dense", "kernel")
        assert json.loads(source.metadata["config"])["class_name"] == "Sequential"


@pytest.mark.parametrize("name", ["k3_tutorial.keras", "k3_tutorial_sharded.weights.json"])
def test_the_one_checkpoint_of_a_folder_is_found(tmp_path: Path, name: str) -> None:
    for path in GOLDEN.glob("k3_tutorial_sharded*" if "sharded" in name else name):
        shutil.copy(path, tmp_path)

    with BACKEND.open(here(tmp_path), "") as source:
        assert source.read("layers/dense/vars/1" if "sharded" in name else "layers/dense/bias").shape == (64,)


@pytest.mark.parametrize(
    ("form", "suffix"),
    [("generic", ".h5"), ("keras-legacy", ".h5"), ("keras-weights", ".weights.h5"), ("keras", ".keras")],
)
def test_names_end_as_the_form_asks_for(form: Any, suffix: str) -> None:
    backend = HDF5Backend(form=form)

    assert backend.suffix == suffix
    assert backend.file_sets(["x" + suffix]) == {"x": ["x" + suffix]}
    assert HDF5Backend().file_sets(["x" + suffix]) == {("x" + suffix).removesuffix(".h5"): ["x" + suffix]}


def test_a_form_of_keras_is_written_from_what_an_opened_file_carries(tmp_path: Path) -> None:
    with BACKEND.open(here(GOLDEN), "k3_tutorial.keras") as source:
        parts = tuple(Part(name, spec) for name, spec in source.specs.items())
        layout = HDF5Backend(form="keras-weights", template=source).layout(Contents((parts,)), stem="m", align=64)
        transfer.write(here(tmp_path), layout, source)
        bias = source.read("layers/dense/bias")

    with h5py.File(tmp_path / "m.weights.h5") as file:
        assert np.array_equal(file["layers/dense/vars/1"], bias)


def test_unknown_forms_and_templates_for_none_are_refused() -> None:
    with pytest.raises(ValueError, match="'generic' or one of 'keras-legacy',"):
        HDF5Backend(form="h5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a template is for Keras' forms alone"):
        HDF5Backend(template=MemorySource({}, {}))


def test_bfloat16_of_keras_is_bfloat16() -> None:
    with BACKEND.open(here(GOLDEN), "k3_bf16.keras") as source:
        assert {source.specs[name].dtype for name in source.specs if name.startswith("layers/")} == {"bfloat16"}


def test_a_folder_with_an_unzipped_model_is_one(tmp_path: Path) -> None:
    shutil.unpack_archive(GOLDEN / "k3_tutorial.keras", tmp_path / "model", "zip")

    for folder, path in ((here(tmp_path), "model"), (here(tmp_path / "model"), "")):
        with BACKEND.open(folder, path) as source:
            assert source.read("layers/dense/bias").shape == (64,)
            assert source.extents("layers/dense/bias")[0].folder.location().endswith("model")


def test_nothing_of_ours_needs_h5py(tmp_path: Path) -> None:
    keras = str(GOLDEN / "k3_functional.keras")

    done = subprocess.run([sys.executable, "-c", WITHOUT_H5PY, tmp_path / "m.h5", keras], capture_output=True, text=True)

    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "{'w': array([0, 1, 2]), 'deep': [{'s': array(['x'], dtype=object)}], 'n': 1}"


def test_what_only_h5py_can_read_says_why_and_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: object) -> None:
        raise MissingDependencyError("pip install 'ckptmgr[hdf5]'")

    monkeypatch.setattr(opening.File, "worker", missing)
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        file.attrs.update({f"a{index}": index for index in range(20)})

    with pytest.raises(MissingDependencyError, match=r"has what only h5py can read \('/': .*fractal heap\): pip install"):
        BACKEND.open(here(tmp_path), "x.h5")


def test_what_not_even_h5py_explains_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(file: object) -> None:
        raise Unknown("some other thing")

    monkeypatch.setattr(opening, "open_foreign", unknown)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["w"] = 1

    with pytest.raises(CorruptCheckpointError, match="not even h5py can read all of it: some other thing"):
        BACKEND.open(here(tmp_path), "x.h5")


def test_no_process_is_left_of_a_try_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(opening.File, "close", lambda file: closed.append(file))
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        file.attrs.update({f"a{index}": index for index in range(20)})
        file.create_dataset("w", (3,))

    with pytest.raises(CorruptCheckpointError, match="it was never written"):
        BACKEND.open(here(tmp_path), "x.h5")

    assert [file.name for file in closed] == ["x.h5"]
    for file in closed:
        file._worker.close()


def test_a_file_that_is_no_hdf5_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"not HDF5" * 1000)

    with pytest.raises(CorruptCheckpointError, match="there is no HDF5 signature") as error:
        BACKEND.open(here(tmp_path), "x.h5")
    assert error.value.file == "x.h5"


def test_a_changed_byte_gives_only_our_errors(tmp_path: Path) -> None:
    state = {"s": np.array([b"a\0", b"b"], object), "f": np.ones(3, bool), "w": np.zeros(3, ml_dtypes.bfloat16), "n": [1, "x"]}
    ckptmgr.save(tmp_path / "m.h5", state, backend=BACKEND)
    good = (tmp_path / "m.h5").read_bytes()
    random = np.random.default_rng(3)

    for at in random.permutation(np.flatnonzero(np.frombuffer(good, np.uint8)))[:250].tolist():
        bad = bytearray(good)
        bad[at] ^= 1 << int(random.integers(8))
        (tmp_path / "m.h5").write_bytes(bad)
        with suppress(CheckpointError), BACKEND.open(here(tmp_path), "m.h5") as source:
            transfer.read(source, map(Want, source.specs))
