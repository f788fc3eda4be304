"""The same small net in Keras and in torch: weights moved each way by the built-in rules give equal outputs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import keras, torch

import ckptmgr
from ckptmgr import Layers, Rules, convert, open_checkpoint
from ckptmgr_hdf5 import HDF5Backend

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
IMAGES = np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype(np.float32)


def keras_net() -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="conv"),
            layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise"),
            layers.Conv2DTranspose(6, 2, name="up"),
            layers.BatchNormalization(name="norm"),
            layers.Reshape((25, 6), name="rows"),
            layers.LSTM(5, return_sequences=True, name="lstm"),
            layers.GRU(4, name="gru"),
            layers.LayerNormalization(name="scale"),
            layers.Dense(2, name="head"),
        ]
    )


def torch_net() -> Any:
    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)
            self.depthwise = torch.nn.Conv2d(4, 8, 3, groups=4)
            self.up = torch.nn.ConvTranspose2d(8, 6, 2)
            self.norm = torch.nn.BatchNorm2d(6, eps=1e-3)
            self.lstm = torch.nn.LSTM(6, 5, batch_first=True)
            self.gru = torch.nn.GRU(5, 4, batch_first=True)
            self.scale = torch.nn.LayerNorm(4, eps=1e-3)
            self.head = torch.nn.Linear(4, 2)

        def forward(self, images: Any) -> Any:
            found = self.norm(self.up(self.depthwise(self.conv(images.permute(0, 3, 1, 2)))))
            rows = found.permute(0, 2, 3, 1).reshape(len(images), 25, 6)
            return self.head(self.scale(self.gru(self.lstm(rows)[0])[0][:, -1]))

    return Net()


def shaken(weights: list[Any]) -> list[Any]:
    """Weights of which none is zero or one, and no variance negative."""
    random = np.random.default_rng(2)
    return [random.uniform(0.1, 0.6, size=weight.shape).astype(weight.dtype) for weight in weights]


def answers(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(IMAGES)).numpy()


@pytest.mark.parametrize("ending", ["keras", "h5", "weights.h5"])
def test_a_net_of_keras_gives_the_same_in_torch_and_comes_back_to_the_bit(tmp_path: Path, ending: str) -> None:
    model = keras_net()
    model.set_weights(shaken(model.get_weights()))
    start, back = tmp_path / f"model.{ending}", tmp_path / f"back.{ending}"
    model.save_weights(start) if ending == "weights.h5" else model.save(start)
    names = {  # a file of weights names layers after their classes
        "conv2d": "conv", "depthwise_conv2d": "depthwise", "conv2d_transpose": "up", "batch_normalization": "norm",
        "layer_normalization": "scale", "dense": "head",
    }  # fmt: skip
    rule = Layers("keras-to-torch", layers=names if ending == "weights.h5" else {})

    convert(start, tmp_path / "model.pt", to="torch", rename=rule)
    form = HDF5Backend("keras-legacy") if ending == "h5" else None  # that ending alone is any HDF5
    convert(tmp_path / "model.pt", back, to=form, rename=Rules.inverted_from(tmp_path / "model.pt"))

    net = torch_net()
    net.load_state_dict(torch.serialization.load(tmp_path / "model.pt", weights_only=True))
    np.testing.assert_allclose(answers(net), np.asarray(model(IMAGES)), atol=1e-5)
    with open_checkpoint(start) as old, open_checkpoint(back) as new:
        assert old.specs == new.specs
        assert [old.read(name).tobytes() for name in old.specs] == [new.read(name).tobytes() for name in old.specs]
    again = keras_net()
    again.load_weights(back)
    assert [weight.tobytes() for weight in again.get_weights()] == [weight.tobytes() for weight in model.get_weights()]


def test_a_net_of_torch_gives_the_same_in_keras(tmp_path: Path) -> None:
    net = torch_net()
    state = net.state_dict()
    floats = [name for name in state if state[name].is_floating_point()]
    values = shaken([state[name].numpy() for name in floats])
    net.load_state_dict(state | {name: torch.from_numpy(value) for name, value in zip(floats, values, strict=True)})
    torch.save({"module." + name: value for name, value in net.state_dict().items()}, tmp_path / "net.pt")
    keras_net().save(tmp_path / "model.keras")

    report = convert(
        tmp_path / "net.pt",
        tmp_path / "net.npz",
        rename=["strip-module", Layers("torch-to-keras", kinds={"depthwise": "depthwise:2"})],
    )
    ckptmgr.swap_weights(tmp_path / "model.keras", ckptmgr.load(tmp_path / "net.npz"), tmp_path / "new.keras")

    model = keras.models.load_model(tmp_path / "new.keras")
    np.testing.assert_allclose(np.asarray(model(IMAGES)), answers(net), atol=1e-5)
    assert report.left_out == ("module.norm.num_batches_tracked",)
    assert [tensor.name for tensor in report.tensors if "not bit-exact" in tensor.note] == ["layers/lstm/cell/bias"]


WORDS = np.random.default_rng(3).integers(0, 11, (4, 9)).astype(np.int32)
READERS = {"words": "embed", "pair": "both", "gated": "gates", "window": "conv", "plain": "rnn", "head": "head"}


def keras_reader() -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((9,), dtype="int32"),
            layers.Embedding(11, 4, name="words"),
            layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="pair"),
            layers.Bidirectional(layers.GRU(2, return_sequences=True), name="gated"),
            layers.Conv1D(5, 2, name="window"),
            layers.SimpleRNN(3, name="plain"),
            layers.Dense(2, use_bias=False, name="head"),
        ]
    )


def torch_reader() -> Any:
    class Reader(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(11, 4)
            self.both = torch.nn.LSTM(4, 3, batch_first=True, bidirectional=True)
            self.gates = torch.nn.GRU(6, 2, batch_first=True, bidirectional=True)
            self.conv = torch.nn.Conv1d(4, 5, 2)
            self.rnn = torch.nn.RNN(5, 3, batch_first=True)
            self.head = torch.nn.Linear(3, 2, bias=False)

        def forward(self, words: Any) -> Any:
            rows = self.gates(self.both(self.embed(words))[0])[0]
            return self.head(self.rnn(self.conv(rows.permute(0, 2, 1)).permute(0, 2, 1))[0][:, -1])

    return Reader()


def test_a_net_for_sequences_gives_the_same_on_both_sides_each_way(tmp_path: Path) -> None:
    model, net = keras_reader(), torch_reader()
    model.set_weights(shaken(model.get_weights()))
    model.save(tmp_path / "model.keras")

    convert(tmp_path / "model.keras", tmp_path / "net.pt", rename=Layers("keras-to-torch", layers=READERS))

    net.load_state_dict(torch.serialization.load(tmp_path / "net.pt", weights_only=True))
    with torch.no_grad():
        answer = net(torch.from_numpy(WORDS).long()).numpy()
        np.testing.assert_allclose(answer, np.asarray(model(WORDS)), atol=1e-5)
        for value in net.parameters():
            value.mul_(0.5)
        answer = net(torch.from_numpy(WORDS).long()).numpy()
    torch.save(net.state_dict(), tmp_path / "half.pt")

    back = Layers("torch-to-keras", layers={mine: theirs for theirs, mine in READERS.items()}, kinds={"head": "dense"})
    convert(tmp_path / "half.pt", tmp_path / "half.npz", rename=back)
    ckptmgr.swap_weights(tmp_path / "model.keras", ckptmgr.load(tmp_path / "half.npz"), tmp_path / "half.keras")

    np.testing.assert_allclose(np.asarray(keras.models.load_model(tmp_path / "half.keras")(WORDS)), answer, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch.compile itself
def test_a_compiled_and_wrapped_module_loads_into_a_plain_one(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save(torch.nn.DataParallel(torch.compile(net)).state_dict(), tmp_path / "a.pt")

    convert(tmp_path / "a.pt", tmp_path / "b.pt", to="torch", rename=["strip-module", "strip-compiled"])

    plain = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    plain.load_state_dict(torch.serialization.load(tmp_path / "b.pt", weights_only=True))
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in plain.state_dict().items())
