"""Exports opened by the tools that they are for: TensorFlow, Keras, PyTorch, safetensors, Transformers."""

from pathlib import Path
from typing import Any

import keras_models
import numpy as np
import pytest
from frameworks import Lazy, keras, tf, torch, transformers

from ckptmgr import CheckpointManager, convert, export
from ckptmgr.integrations.keras import CheckpointCallback, save_model

safetensors_torch = Lazy("safetensors.torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the tools themselves


# ---- PyTorch


def torch_run(folder: Path) -> tuple[Any, Any]:
    """A run with one step of a module whose first and last weights are tied, and its optimizer."""
    module = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5))
    module[1].weight = module[0].weight
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    with CheckpointManager(folder) as manager:
        manager.save(7, {"model": module, "optimizer": optimizer, "epoch": 3})
    return module, optimizer


def assert_equal(one: Any, other: Any) -> None:
    assert {*one} == {*other}
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_torch_loads_the_weights_with_tied_ones_tied(tmp_path: Path) -> None:
    module, _ = torch_run(tmp_path / "run")

    export(tmp_path / "run", tmp_path / "out", to="torch")

    found = torch.serialization.load(tmp_path / "out" / "pytorch_model.bin", weights_only=True, mmap=True)
    assert_equal(found, module.state_dict())
    assert found["0.weight"].data_ptr() == found["1.weight"].data_ptr()
    module.load_state_dict(found)


def test_torch_goes_on_training_from_the_whole_state(tmp_path: Path) -> None:
    module, optimizer = torch_run(tmp_path / "run")

    export(tmp_path / "run", tmp_path / "last.pt", to="torch", select="*")

    found = torch.serialization.load(tmp_path / "last.pt", weights_only=True)
    assert found["epoch"] == 3
    assert_equal(found["model"], module.state_dict())
    optimizer.load_state_dict(found["optimizer"])


def test_safetensors_loads_a_model_with_tied_weights(tmp_path: Path) -> None:
    module, _ = torch_run(tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.nn.init.zeros_(module[0].weight)

    export(tmp_path / "run", tmp_path / "hf", to="hf")

    missing, unexpected = safetensors_torch.load_model(module, tmp_path / "hf" / "model.safetensors")
    assert (missing, unexpected) == (set(), [])
    assert_equal(module.state_dict(), before)


@pytest.mark.parametrize("shard", [None, "10KB"])
@pytest.mark.parametrize("to", ["hf", "torch"])
def test_transformers_loads_a_step_as_a_pretrained_model(tmp_path: Path, to: Any, shard: str | None) -> None:
    config = transformers.GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters())
    config.save_pretrained(tmp_path / "config")
    model.generation_config.save_pretrained(tmp_path / "config")
    assets = {path.name: path for path in (tmp_path / "config").iterdir()}
    with CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, {"model": model, "optimizer": optimizer, "epoch": 1}, assets=assets)

    export(tmp_path / "run", tmp_path / "out", to=to, max_shard_size=shard)

    kind = transformers.GPT2LMHeadModel
    loaded, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True, use_safetensors=to == "hf")
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_equal(loaded.state_dict(), model.state_dict())
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()


# ---- TensorFlow


def test_tensorflow_finds_the_latest_step_and_restores_it(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run") as manager:
        for step in (5, 10):
            manager.save(step, {"net": {"w": np.full(3, step, np.float32)}, "epoch": step, "tied": [np.ones(2, np.int64)]})
            export(manager, tmp_path / "tf", to="tf", step=step)
    net = tf.Module()
    net.w = tf.Variable(tf.zeros(3))
    checkpoint = tf.train.Checkpoint(net=net, epoch=tf.Variable(0, dtype=tf.int64))

    assert tf.train.latest_checkpoint(str(tmp_path / "tf")) == str(tmp_path / "tf" / "ckpt-10")
    checkpoint.restore(tf.train.latest_checkpoint(str(tmp_path / "tf"))).assert_existing_objects_matched()

    assert net.w.numpy().tolist() == [10, 10, 10]
    assert int(checkpoint.epoch) == 10


def test_tensorflows_own_manager_goes_on_where_the_export_ends(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run") as manager:
        for step in (5, 6):
            manager.save(step, {"w": np.full(3, step, np.float32)})
            export(manager, tmp_path / "tf", to="tf", step=step)
    checkpoint = tf.train.Checkpoint(w=tf.Variable(tf.zeros(3)))
    theirs = tf.train.CheckpointManager(checkpoint, str(tmp_path / "tf"), max_to_keep=2)

    assert [Path(path).name for path in theirs.checkpoints] == ["ckpt-5", "ckpt-6"]
    theirs.restore_or_initialize()
    assert checkpoint.w.numpy().tolist() == [6, 6, 6]

    # The next one has the next number: none of the exported is written over.
    assert Path(theirs.save()).name == "ckpt-7"
    assert [Path(path).name for path in theirs.checkpoints] == ["ckpt-6", "ckpt-7"]


def test_an_object_graph_comes_along(tmp_path: Path) -> None:
    source = tf.train.Checkpoint(layer=tf.Module(), other=tf.Variable([1.0, 2.0]))
    source.layer.w = tf.Variable(tf.ones(3))
    source.save(str(tmp_path / "theirs" / "ckpt"))
    with CheckpointManager(tmp_path / "run") as manager:
        from_theirs = convert(str(tmp_path / "theirs" / "ckpt-1"), manager, step=4)
    assert from_theirs.lost == {}

    export(tmp_path / "run", tmp_path / "tf", to="tf")

    target = tf.train.Checkpoint(layer=tf.Module(), other=tf.Variable([0.0, 0.0]))
    target.layer.w = tf.Variable(tf.zeros(3))
    target.restore(str(tmp_path / "tf" / "ckpt-4")).assert_consumed()
    assert target.layer.w.numpy().tolist() == [1, 1, 1]


# ---- Keras


def averaged(lib: Any) -> Any:
    """A model whose optimizer has its variables by kind, not by weight."""
    return keras_models.tutorial(lib, optimizer=lib.optimizers.Adam(amsgrad=True, use_ema=True, gradient_accumulation_steps=2))


@pytest.mark.parametrize("make", [keras_models.tutorial, keras_models.nested, averaged])
def test_keras_loads_a_step_of_its_callbacks_as_a_model(tmp_path: Path, make: Any) -> None:
    keras.layers.Dense(1)  # so that names which count do not begin at the beginning
    x, y = keras_models.data()
    model = make(keras)
    model.fit(x, y, epochs=1, verbose=0)
    with CheckpointManager(tmp_path / "run") as manager:
        save_model(manager, 6, model)

    report = export(tmp_path / "run", tmp_path / "out", to="keras")
    with manager.open(6) as opened:
        converted = convert(opened, tmp_path / "b.keras")

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.keras"]
    assert {name.partition("/")[0] for name in report.left_out} == {"random"}
    assert (converted.left_out, {*converted.lost}) == (report.left_out, {"state tree"})
    assert (tmp_path / "b.keras").read_bytes() == (tmp_path / "out" / "model.keras").read_bytes()
    loaded = keras.saving.load_model(tmp_path / "out" / "model.keras")
    assert np.array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    for one, other in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        assert np.array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other))


def test_keras_loads_weights_alone_where_no_config_was_saved(tmp_path: Path) -> None:
    x, y = keras_models.data()
    model = keras_models.nested(keras)
    with CheckpointManager(tmp_path / "run") as manager:
        model.fit(x, y, epochs=1, verbose=0, callbacks=[CheckpointCallback(manager, save_weights_only=True)])

    export(tmp_path / "run", tmp_path / "out", to="keras")

    fresh = keras_models.nested(keras)
    fresh.optimizer.build(fresh.trainable_variables)
    fresh.load_weights(tmp_path / "out" / "model.weights.h5")
    assert np.array_equal(fresh.predict(x, verbose=0), model.predict(x, verbose=0))
    assert int(fresh.optimizer.iterations) == int(model.optimizer.iterations)


def test_a_file_of_keras_stays_one(tmp_path: Path) -> None:
    x, _ = keras_models.data()
    model = keras_models.tutorial(keras)
    model.save(tmp_path / "a.keras")
    with CheckpointManager(tmp_path / "run") as manager:
        convert(tmp_path / "a.keras", manager, step=1)

    export(tmp_path / "run", tmp_path / "b.keras", to="keras")

    assert np.array_equal(keras.saving.load_model(tmp_path / "b.keras").predict(x, verbose=0), model.predict(x, verbose=0))
