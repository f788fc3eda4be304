"""Keras files that ckptmgr writes, read back by ckptmgr: every fixture, in every form that its config tells."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keras_forms import GOLDEN, Saved, golden, planned, rewrite, saved, source, write

from ckptmgr.backend import Contents, Layout, Part, TensorSpec
from ckptmgr.errors import StateMismatchError, UnsupportedTensorError
from ckptmgr_hdf5 import generic, keras_writing

SAME = [
    ("k2_functional.h5", "keras-legacy"),
    ("k2_functional_weightsonly.h5", "keras-legacy-weights"),
    ("k2_functional.weights.h5", "keras-weights"),
    ("k2_functional.keras", "keras"),
    ("k2_tutorial_legacyopt.h5", "keras-legacy"),
    ("k3_functional.h5", "keras-legacy"),
    ("k3_functional.weights.h5", "keras-weights"),
    ("k3_functional.keras", "keras"),
    ("k3_tutorial_sharded.weights.json", "keras-weights"),
    ("k3_subclassed.weights.h5", "keras-weights"),
    ("k3_subclassed.keras", "keras"),
    ("k3_bf16.keras", "keras"),
    ("k3_lambda.h5", "keras-legacy"),
]
OTHER = [
    (f"{name}{suffix}", form)
    for name in ("k2_tutorial", "k2_functional", "k3_tutorial", "k3_functional")
    for suffix, form in ((".h5", "keras"), (".h5", "keras-weights"), (".keras", "keras-legacy"), (".keras", "keras-weights"))
]


def same_bits(left: Saved, right: Saved) -> bool:
    return {name: (a.dtype, a.shape, a.tobytes()) for name, a in left.tensors.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in right.tensors.items()
    }


def values(held: Saved) -> list[tuple[Any, ...]]:
    """All weights but metrics, in an order that does not hang on their names."""
    kept = [a for name, a in held.tensors.items() if not name.startswith("metrics/")]
    return sorted((a.dtype.str, a.shape, a.tobytes()) for a in kept)


@pytest.mark.parametrize(("name", "form"), SAME)
def test_a_file_is_written_again_with_the_same_names_bits_and_config(tmp_path: Path, name: str, form: keras_writing.Form) -> None:
    held = golden(name)

    again = saved(rewrite(tmp_path, held, form))

    assert same_bits(again, held)
    assert {key: text for key, text in again.metadata.items() if key != "keras"} == {
        key: text for key, text in held.metadata.items() if key != "keras"
    }


@pytest.mark.parametrize(("name", "form"), SAME)
def test_a_template_is_copied_whole_but_for_the_tensors(tmp_path: Path, name: str, form: keras_writing.Form) -> None:
    held = golden(name)
    zeros = {each: np.zeros_like(array) for each, array in held.tensors.items()}

    with source(GOLDEN / name) as template:
        path = write(tmp_path, zeros, planned(zeros, form, template=template))

    again = saved(path)
    assert same_bits(again, Saved(zeros, {}, {}))
    assert list(again.tensors) == list(held.tensors)


@pytest.mark.parametrize(("name", "form"), OTHER)
def test_the_other_layout_follows_from_the_config(tmp_path: Path, name: str, form: keras_writing.Form) -> None:
    held = golden(name)

    again = saved(rewrite(tmp_path, held, form))

    assert values(again) == values(held)


@pytest.mark.parametrize("name", ["k2_functional", "k3_functional"])
@pytest.mark.parametrize(("start", "form"), [(".h5", "keras"), (".keras", "keras-legacy")])
def test_there_and_back_gives_every_weight_its_own_value(tmp_path: Path, name: str, start: str, form: keras_writing.Form) -> None:
    held = golden(name + start).without("metrics/")
    back: keras_writing.Form = "keras" if form == "keras-legacy" else "keras-legacy"

    there = saved(rewrite(tmp_path / "there", held, form))
    again = saved(rewrite(tmp_path / "back", there, back))

    named = [each for each in held.tensors if "ss_" not in each and "ss/" not in each]  # a class of its own has numbers
    assert len(named) > 50
    assert all(again.tensors[each].tobytes() == held.tensors[each].tobytes() for each in named)


@pytest.mark.parametrize("name", ["k3_tutorial.keras", "k3_functional.keras", "k2_functional.keras"])
def test_a_config_alone_puts_every_tensor_where_keras_had_it(tmp_path: Path, name: str) -> None:
    held = golden(name).without("metrics/")
    config = {"config": held.metadata["config"]}

    again = saved(rewrite(tmp_path, Saved(held.tensors, config, {}), "keras"))

    assert again.metadata["keras"]["stored"] == {
        each: path for each, path in held.metadata["keras"]["stored"].items() if each in held.tensors
    }
    assert same_bits(again, held)


def test_the_order_of_the_state_does_not_matter(tmp_path: Path) -> None:
    held = golden("k3_functional.h5")
    turned = Saved(dict(reversed(held.tensors.items())), held.metadata, held.blobs)

    assert same_bits(saved(rewrite(tmp_path, turned, "keras")), saved(rewrite(tmp_path / "b", held, "keras")))


def test_missing_and_unexpected_names_are_told_at_once() -> None:
    held = golden("k3_tutorial.keras")
    tensors = dict(held.tensors)
    tensors["layers/dens/kernel"] = tensors.pop("layers/dense/kernel")

    with pytest.raises(StateMismatchError, match=r"missing: 'layers/dense/kernel'; unexpected: 'layers/dens/kernel'") as found:
        planned(tensors, "keras", metadata=held.metadata)

    assert (found.value.missing, found.value.unexpected) == (["layers/dense/kernel"], ["layers/dens/kernel"])


def test_a_shape_other_than_the_template_s_is_refused() -> None:
    tensors = {**golden("k3_tutorial.keras").tensors, "layers/dense/bias": np.zeros(63, "f4")}

    with source(GOLDEN / "k3_tutorial.keras") as template, pytest.raises(StateMismatchError, match=r"\(63,\) instead of \(64,\)"):
        planned(tensors, "keras", template=template)


@pytest.mark.parametrize("form", ["keras", "keras-weights", "keras-legacy", "keras-legacy-weights"])
@pytest.mark.parametrize("name", ["k3_tutorial.keras", "k3_tutorial.h5"])
def test_the_optimizer_may_be_left_out_as_a_whole(tmp_path: Path, name: str, form: keras_writing.Form) -> None:
    held = golden(name).without("optimizer/")

    assert values(saved(rewrite(tmp_path, held, form))) == values(held)


@pytest.mark.parametrize(("name", "form"), [("k3_tutorial.keras", "keras"), ("k3_tutorial.h5", "keras-legacy")])
def test_a_template_s_optimizer_is_left_out_if_the_state_has_none(tmp_path: Path, name: str, form: keras_writing.Form) -> None:
    tensors = golden(name).without("optimizer/").tensors

    with source(GOLDEN / name) as template:
        again = saved(write(tmp_path, tensors, planned(tensors, form, template=template)))

    assert list(again.tensors) == list(tensors)


def test_a_part_of_the_optimizer_is_refused() -> None:
    held = golden("k3_tutorial.keras").without("optimizer/iteration")

    with pytest.raises(StateMismatchError, match="missing: 'optimizer/iteration'"):
        planned(held.tensors, "keras", metadata=held.metadata)


def test_legacy_weights_alone_have_no_place_for_the_optimizer() -> None:
    held = golden("k3_tutorial.h5")

    with pytest.raises(ValueError, match="leave out 'optimizer/iteration'"):
        planned(held.tensors, "keras-legacy-weights", metadata=held.metadata)


@pytest.mark.parametrize(("name", "form"), [("k3_subclassed.keras", "keras-legacy"), ("k3_tutorial.weights.h5", "keras")])
def test_what_the_config_does_not_tell_asks_for_a_template(name: str, form: keras_writing.Form) -> None:
    held = golden(name)

    with pytest.raises(ValueError, match=r"pass a \.(h5|keras) of the same model that Keras saved as template"):
        planned(held.tensors, form, metadata=held.metadata)


def test_a_state_that_nothing_is_known_of_asks_for_a_template() -> None:
    with pytest.raises(ValueError, match="pass a file of it as template"):
        planned({"w": np.zeros(3)}, "keras")


def test_a_template_that_keras_did_not_save_is_refused(tmp_path: Path) -> None:
    plain = write(tmp_path, {"w": np.zeros(3)}, plain_layout())

    with source(plain) as template, pytest.raises(ValueError, match="the template is no file of a Keras model"):
        planned({"w": np.zeros(3)}, "keras", template=template)


def plain_layout() -> Layout:
    return generic.layout(Contents(files=((Part("w", TensorSpec("float64", (3,))),),)), stem="plain", align=8)


def test_bfloat16_has_no_place_in_the_legacy_layout() -> None:
    held = golden("k3_bf16.keras")

    with pytest.raises(UnsupportedTensorError, match="bfloat16") as found:
        planned(held.tensors, "keras-legacy", metadata=held.metadata)

    assert found.value.tensor == "layers/d1/kernel"
