"""Which part of a state another tool gets: plain, or an error that lists what there is."""

import pytest

from ckptmgr.choosing import Choice, by_globs, of_keras, of_model

STATE = ["model/0.weight", "model/1/w", "optimizer/step", "epoch"]


def test_the_part_called_model_is_the_model() -> None:
    assert of_model(STATE) == Choice(("model/*",), "model/")
    assert of_model(["opt_state/0/mu", "params/dense/kernel"]) == Choice(("params/*",), "params/")


def test_weights_alone_are_taken_as_they_are() -> None:
    assert of_model(["encoder/w", "decoder/w", "encoder.b"]) == Choice()


@pytest.mark.parametrize("names", [["a/w", "b/w", "optimizer/step"], ["model/w", "params/w"], ["a/w", "opt_state/mu"]])
def test_what_is_not_plain_is_an_error_that_lists_the_groups(names: list[str]) -> None:
    with pytest.raises(ValueError, match=f"'{names[0].split('/')[0]}'.*say select=.*or select='\\*'"):
        of_model(names)


def test_files_of_keras_hold_layers_and_optimizer() -> None:
    names = [
        "layers/dense/kernel",
        "vars/gain",
        "optimizer/iteration",
        "random/layers/dropout/seed",
        "history/loss",
        "metrics/m/total",
    ]

    assert of_keras(names).globs == ("layers/*", "vars/*", "optimizer/*")
    assert of_keras(STATE) == of_model(STATE)


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("model/*", Choice(("model/*",), "model/")),
        ("model", Choice(("model/*",), "model/")),
        (["model/1/*", "model/0*"], Choice(("model/1/*", "model/0*"), "model/")),
        ("model/1/w", Choice(("model/1/w",), "model/1/")),
        (["model/*", "epoch"], Choice(("model/*", "epoch"), "")),
        ("*", Choice(("*",), "")),
    ],
)
def test_globs_are_stripped_of_the_groups_that_all_begin_with(select: str | list[str], expected: Choice) -> None:
    assert by_globs(STATE, select, strip=True) == expected
    assert by_globs(STATE, select, strip=False) == expected._replace(prefix="")
