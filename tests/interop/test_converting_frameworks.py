"""What real frameworks wrote is converted into every format, and back: they read it as if they had written it themselves."""

import importlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import safetensors.numpy
from conversions import FILES, FORMATS
from frameworks import keras, tf, torch

import ckptmgr
from ckptmgr import Checkpoint, ConvertReport, convert, open_checkpoint
from ckptmgr_hdf5 import HDF5Backend

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras asks TensorFlow's variables for it
]


def trained() -> Any:
    """A small model with the state of an optimizer."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2)])
    model.compile("adam", keras.losses.MeanSquaredError())
    model.train_on_batch(np.ones((5, 3)), np.zeros((5, 2)))
    return model


def weights(model: Any) -> list[bytes]:
    return [weight.tobytes() for weight in model.get_weights()]


@pytest.mark.parametrize("through", FORMATS)
def test_a_tensorflow_checkpoint_is_consumed_after_it_went_through_another_format(tmp_path: Path, through: str) -> None:
    def objects() -> Any:
        tied = tf.Variable([[1.0, 2.0]])
        text = tf.Variable("text") if through != "safetensors" else tf.Variable(5)  # which has no strings
        nested = {"a": tf.Variable([1, 2], dtype=tf.int64), "list": [tf.Variable(3.0), text]}
        return tf.train.Checkpoint(step=tf.Variable(0, dtype=tf.int64), tied=tied, again=tied, nested=nested)

    first = objects()
    first.step.assign(41)
    first.nested["a"].assign([5, 6])
    path = first.save(str(tmp_path / "ckpt"))

    convert(path, tmp_path / FILES[through], to=through)
    report = convert(tmp_path / FILES[through], tmp_path / "back", to="tf_bundle")

    second = objects()
    second.restore(str(tmp_path / "back")).assert_consumed()
    assert int(second.step) == 41
    assert second.nested["a"].numpy().tolist() == [5, 6]
    assert "blob '_CHECKPOINTABLE_OBJECT_GRAPH'" in report.held
    assert report.lost == {}


@pytest.mark.parametrize("through", FORMATS)
@pytest.mark.parametrize("form", ["keras", "keras-weights", "keras-legacy"])
def test_a_model_of_keras_loads_after_it_went_through_another_format(tmp_path: Path, form: Any, through: str) -> None:
    model = trained()
    backend = HDF5Backend(form)
    start = tmp_path / f"model{backend.suffix}"
    if form == "keras-weights":
        model.save_weights(start)
    else:
        model.save(start)

    convert(start, tmp_path / f"there-{FILES[through]}", to=through)
    report = convert(tmp_path / f"there-{FILES[through]}", tmp_path / f"back{backend.suffix}", to=backend)

    if form == "keras-weights":
        again = trained()
        again.set_weights([weight * 0 for weight in again.get_weights()])
        again.load_weights(tmp_path / f"back{backend.suffix}")
    else:
        again = keras.models.load_model(tmp_path / f"back{backend.suffix}")
    assert weights(again) == weights(model)
    assert [name for name in report.lost if not name.startswith(("state tree", "metadata", "blob"))] == []


def test_endings_of_keras_files_tell_their_form(tmp_path: Path) -> None:
    model = trained()
    model.save(tmp_path / "model.h5")

    convert(tmp_path / "model.h5", tmp_path / "model.keras")
    convert(tmp_path / "model.keras", tmp_path / "model.weights.h5")

    assert weights(keras.models.load_model(tmp_path / "model.keras")) == weights(model)
    again = trained()
    again.load_weights(tmp_path / "model.weights.h5")
    assert weights(again) == weights(model)


def test_real_libraries_open_what_a_tensorflow_checkpoint_became(tmp_path: Path) -> None:
    from_tf = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2], np.int64)}
    path = tf.train.Checkpoint(net={name: tf.Variable(value) for name, value in from_tf.items()}).save(str(tmp_path / "ckpt"))

    for to in ("safetensors", "npz", "hdf5"):
        convert(path, tmp_path / FILES[to], to=to)

    file = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    with np.load(tmp_path / "model.npz") as arrays:
        for name, value in from_tf.items():
            np.testing.assert_array_equal(file[f"net.{name}"], value)
            np.testing.assert_array_equal(arrays[f"net/{name}"], value)
    with h5py.File(tmp_path / "model.h5") as groups:
        np.testing.assert_array_equal(groups["net/w"], from_tf["w"])


def test_bfloat16_of_torch_reaches_tensorflow(tmp_path: Path) -> None:
    weight = torch.randn(4, 5, dtype=torch.bfloat16)
    importlib.import_module("safetensors.torch").save_file({"layer.weight": weight}, tmp_path / "a.safetensors")

    convert(tmp_path / "a.safetensors", tmp_path / "ckpt", to="tf_bundle")

    reader = tf.train.load_checkpoint(str(tmp_path / "ckpt"))
    key = next(key for key in reader.get_variable_to_dtype_map() if "weight" in key)
    assert reader.get_tensor(key).tobytes() == weight.view(torch.int16).numpy().tobytes()


def test_a_converted_step_is_restored_by_tensorflow_itself(tmp_path: Path) -> None:
    first = tf.train.Checkpoint(a=tf.Variable([1.0, 2.0]), step=tf.Variable(7, dtype=tf.int64))
    path = first.save(str(tmp_path / "ckpt"))

    report = convert(path, tmp_path / "run", to="tf_bundle", step=7)

    second = tf.train.Checkpoint(a=tf.Variable([0.0, 0.0]), step=tf.Variable(0, dtype=tf.int64))
    second.restore(report.files[-1].removesuffix(".index")).assert_consumed()
    assert second.a.numpy().tolist() == [1.0, 2.0]
    assert ckptmgr.CheckpointManager(tmp_path / "run", backend="tf_bundle").restore(7).state["a"].tolist() == [1.0, 2.0]


GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("to", FORMATS)
def test_every_golden_file_has_the_same_bytes_elsewhere_or_is_refused_by_name(tmp_path: Path, to: str) -> None:
    seen = 0
    for start in golden():
        with open_checkpoint(start) as old:
            report = converted(old, f"{tmp_path}/{seen}-{FILES[to]}", to)
            if report is None:
                continue
            with open_checkpoint(f"{tmp_path}/{seen}-{FILES[to]}") as new:
                for tensor in report.tensors:
                    assert tensor.dtype == old.specs[tensor.source].dtype
                for name in old.specs:
                    mine = next(tensor.name for tensor in report.tensors if tensor.source == name)
                    there, here = old.read(name), new.read(mine if mine in new.specs else mine.replace("/", "."))
                    assert there.dtype == here.dtype
                    assert there.tolist() == here.tolist() or there.tobytes() == here.tobytes()
            seen += 1
    assert seen > 5


def converted(old: Checkpoint, new: str, to: str) -> ConvertReport | None:
    """The report; None if the format refuses a tensor, by its name."""
    try:
        return convert(old, new, to=to)
    except ckptmgr.UnsupportedTensorError as refusal:
        if refusal.tensor is None:
            raise
        return None


def golden() -> list[str]:
    """The checkpoints in tests/golden that open by themselves."""
    found = []
    for path in sorted(GOLDEN.rglob("*")):
        if path.is_file() and path.suffix in (".h5", ".keras", ".safetensors", ".index") and path.stat().st_size < 1 << 20:
            name = str(path).removesuffix(".index") if path.suffix == ".index" else str(path)
            try:
                open_checkpoint(name).close()
            except (ckptmgr.CheckpointError, OSError, ValueError):
                continue
            found.append(name)
    return found
