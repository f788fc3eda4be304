"""Layers of Keras and of torch by rules: the kinds that names and shapes tell, and a way back that is equal to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ckptmgr
from ckptmgr import Layers, Rules, UnsupportedTensorError, convert, load

SIZES = st.integers(1, 4)


def filled(**shapes: tuple[int, ...]) -> dict[str, Any]:
    random = np.random.default_rng(len(shapes))
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Any]:
    """One layer of Keras."""
    a, b, c, d, e = (draw(SIZES) for _ in range(5))
    kind = draw(st.sampled_from(["dense", "conv", "depthwise", "norm", "embedding", "lstm", "gru", "rnn"]))
    gates = {"lstm": 4, "gru": 3, "rnn": 1}.get(kind, 0)
    bias = {"lstm": {"bias": (4 * b,)}, "gru": {"bias": (2, 3 * b)}, "rnn": {"bias": (b,)}}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "dense": {"kernel": (a, b), "bias": (b,)},
        "conv": {"kernel": (*(a, b, c)[: draw(SIZES.filter(lambda n: n < 4))], d, e), "bias": (e,)},
        "depthwise": {"depthwise_kernel": (a, b, c, d), "bias": (c * d,)},
        "norm": dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (a,)),
        "embedding": {"embeddings": (a, b)},
    }
    if gates:
        cell = {"kernel": (a, gates * b), "recurrent_kernel": (b, gates * b), **(bias[kind] if draw(st.booleans()) else {})}
        return {"cell": filled(**cell)}
    variables = shapes[kind]
    if kind != "norm" and draw(st.booleans()):
        variables.pop("bias", None)
    return filled(**dict(draw(st.permutations([*variables.items()]))))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(layers(), min_size=1, max_size=3))
def test_layers_of_keras_come_back_from_torch_to_the_bit(tmp_path: Path, found: list[dict[str, Any]]) -> None:
    state = {"layers": {f"layer_{index}": layer for index, layer in enumerate(found)}}
    ckptmgr.save(tmp_path / "a.npz", state, backend="npz")

    convert(tmp_path / "a.npz", tmp_path / "b.npz", rename="keras-to-torch", overwrite=True)
    convert(tmp_path / "b.npz", tmp_path / "c.npz", rename=Rules.inverted_from(tmp_path / "b.npz"), overwrite=True)

    assert flat(tmp_path / "c.npz") == flat(tmp_path / "a.npz")


def flat(path: Path) -> dict[str, Any]:
    with ckptmgr.open_checkpoint(path) as opened:
        return {name: (spec, opened.read(name).tobytes()) for name, spec in sorted(opened.specs.items())}


def torch_of(tmp_path: Path, state: Any, rename: Any = "keras-to-torch") -> dict[str, Any]:
    ckptmgr.save(tmp_path / "a.npz", state, backend="npz")
    convert(tmp_path / "a.npz", tmp_path / "b.npz", rename=rename)
    return dict(load(tmp_path / "b.npz"))


def test_shapes_and_names_of_torch(tmp_path: Path) -> None:
    state = {
        "conv2d": filled(kernel=(3, 5, 2, 4), bias=(4,)),
        "layers": {
            "bidirectional": {
                "forward_layer": {"cell": filled(kernel=(2, 12), recurrent_kernel=(4, 12), bias=(2, 12))},
                "backward_layer": {"cell": filled(kernel=(2, 12), recurrent_kernel=(4, 12), bias=(2, 12))},
            }
        },
    }

    found = torch_of(tmp_path, state, [Layers("keras-to-torch", layers={"conv2d": "features.0"}), ("bidirectional.", "rnn.")])

    assert found["features.0.weight"].tolist() == state["conv2d"]["kernel"].transpose(3, 2, 0, 1).tolist()
    assert {name for name in found if name.startswith("rnn")} == {
        f"rnn.{what}_l0{end}" for what in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") for end in ("", "_reverse")
    }


def test_variables_with_numbers_are_told_by_shapes(tmp_path: Path) -> None:
    vars_ = {"0": np.ones((3, 3, 2, 4)), "1": np.ones(4)}
    norm = {str(index): np.full(4, index) for index in range(4)}

    found = torch_of(tmp_path, {"layers": {"conv2d": {"vars": vars_}, "batch_normalization": {"vars": norm}}})

    assert found["conv2d.weight"].shape == (4, 2, 3, 3)
    assert found["batch_normalization.running_var"].tolist() == [3, 3, 3, 3]
    assert found["batch_normalization.num_batches_tracked"] == 0


def test_plain_values_and_tied_tensors_stay(tmp_path: Path) -> None:
    table = np.ones((5, 3))
    state = {"model": {"emb": {"embeddings": table}, "again": {"embeddings": table}}, "epoch": 3}

    found = torch_of(tmp_path, state, [Layers("keras-to-torch", under="model/")])

    assert found["epoch"] == 3
    assert found["model"]["emb.weight"] is found["model"]["again.weight"]


@pytest.mark.parametrize(
    ("state", "rule", "told"),
    [
        ({"odd": {"a": np.ones(2), "kernel": np.ones((2, 2))}}, "keras-to-torch", "kind of layer these are: 'odd'"),
        ({"vars": {"0": np.ones((4, 2))}}, "keras-to-torch", "'vars'"),
        ({"mine": {"vars": {"0": np.ones((4, 2)), "1": np.ones(2)}}}, "keras-to-torch", "'mine'"),
        ({"query": {"kernel": np.ones((4, 2, 2))}}, "keras-to-torch", "'query'"),
        ({"wte.weight": np.ones((4, 2))}, "torch-to-keras", "kind of layer these are: 'wte'"),
        (
            {"dense": filled(kernel=(2, 3))},
            Layers("keras-to-torch", layers={"dence": "x"}),
            r"'dence' is no layer here \(near: 'dense'",
        ),
        ({"fc": filled(kernel=(2, 3))}, Layers("keras-to-torch", kinds={"fc": "desne"}), "'desne' of 'fc' is none of"),
        (
            {"a": filled(kernel=(2, 3)), "b": filled(kernel=(2, 3))},
            Layers("keras-to-torch", layers={"a": "fc", "b": "fc"}),
            "two values the name 'fc.weight': 'a/kernel', 'b/kernel'",
        ),
    ],
)
def test_what_cannot_be_told_is_an_error_and_never_a_guess(tmp_path: Path, state: Any, rule: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        torch_of(tmp_path, state, rule)

    assert not (tmp_path / "b.npz").exists()


def test_a_layer_that_torch_has_not_is_refused(tmp_path: Path) -> None:
    gru = {"cell": filled(kernel=(2, 12), recurrent_kernel=(4, 12), bias=(12,))}

    with pytest.raises(UnsupportedTensorError, match="reset_after=False"):
        torch_of(tmp_path, {"gru": gru})
    with pytest.raises(UnsupportedTensorError, match="kind 'dense'"):
        torch_of(tmp_path, {"x": filled(kernel=(2, 2, 2))}, Layers("keras-to-torch", kinds={"x": "dense"}))


def test_kinds_say_what_shapes_do_not(tmp_path: Path) -> None:
    state = {"wte.weight": np.ones((4, 2)), "lm.weight": np.ones((4, 2)), "step": np.ones(()), "seen.x": np.ones(1)}
    kinds = {"wte": "embedding", "lm": "dense", "step": "keep", "seen.*": "drop"}
    ckptmgr.save(tmp_path / "a.npz", state, backend="npz")

    report = convert(tmp_path / "a.npz", tmp_path / "b.npz", rename=Layers("torch-to-keras", kinds=kinds))

    found = load(tmp_path / "b.npz")
    assert found["layers"]["wte"]["embeddings"].shape == (4, 2)
    assert found["layers"]["lm"]["kernel"].shape == (2, 4)
    assert found["step"] == 1
    assert report.left_out == ("seen.x",)


def test_a_sum_of_two_biases_is_told(tmp_path: Path) -> None:
    rnn = filled(weight_ih_l0=(8, 3), weight_hh_l0=(8, 2), bias_ih_l0=(8,), bias_hh_l0=(8,))
    ckptmgr.save(tmp_path / "a.npz", {f"rnn.{name}": value for name, value in rnn.items()}, backend="npz")

    report = convert(tmp_path / "a.npz", tmp_path / "b.npz", rename="torch-to-keras")

    bias = next(tensor for tensor in report.tensors if tensor.name.endswith("bias"))
    assert bias.source == "rnn.bias_ih_l0 + rnn.bias_hh_l0"
    assert "not bit-exact" in bias.note
    assert load(tmp_path / "b.npz")["layers"]["rnn"]["cell"]["bias"].tolist() == (rnn["bias_ih_l0"] + rnn["bias_hh_l0"]).tolist()
