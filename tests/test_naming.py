import string
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ckptmgr.naming import FOREIGN, StepNaming, checked_step, parse_foreign

steps = st.one_of(st.integers(0, 10**9), st.integers(0, 10**40))
templates = st.builds(
    "{}{{step{}}}{}".format,
    st.text(string.ascii_letters + string.digits + "_-= é", max_size=6),
    st.sampled_from(["", ":d", ":08d", ":08", ":012d", ":01d", ":099d"]),
    st.text(string.ascii_letters + string.digits + "_-.= é", max_size=6),
)


def is_accepted(template: str) -> bool:
    try:
        return bool(StepNaming(template))
    except ValueError:  # the random text around {step} makes it unsafe
        return False


namings = templates.filter(is_accepted).map(StepNaming)


@given(namings, steps)
@example(StepNaming("{step}"), 10**18)
@example(StepNaming("1{step}0"), 0)
def test_a_name_reads_back_as_its_step(naming: StepNaming, step: int):
    assert naming.parse(naming.format(step)) == step


@given(namings, st.text(max_size=300))
@example(StepNaming("{step}"), "9" * 5000)
def test_parsing_any_text_gives_a_step_or_none(naming: StepNaming, text: str):
    step = naming.parse(text)

    assert step is None or step >= 0


@given(st.sampled_from(["step-{step:08d}", "{step}", "e{epoch:d}-{step}"]), steps, st.text(min_size=1, max_size=3))
def test_names_are_anchored_at_both_ends(template: str, step: int, more: str):
    naming = StepNaming(template)
    name = naming.format(step, {"epoch": 3})

    assume(not set(more) & set(string.digits))
    assert naming.parse(name + more) is None
    assert naming.parse(more + name) is None


def test_the_default_is_zero_padded_and_reads_any_width():
    naming = StepNaming()

    assert naming.format(1200) == "step-00001200"
    assert naming.format(10**18) == "step-1000000000000000000"
    assert [naming.parse(name) for name in ("step-1200", "step-00001200", "step-0000000001200")] == [1200] * 3


NOT_NUMBERS = ["step-", "step--5", "step-+5", "step- 5", "step-5\n", "step-٥", "step-5_0", "step-1e3"]


@pytest.mark.parametrize("name", ["", "step_5", "Step-5", "my-step-5", "step-5.tmp", "step-100-backup", *NOT_NUMBERS])
def test_what_is_not_wholly_a_name_is_not_parsed(name: str):
    assert StepNaming().parse(name) is None


def test_characters_of_a_template_mean_themselves():
    naming = StepNaming("run(1).step-{step}")

    assert naming.parse("run(1).step-7") == 7
    assert naming.parse("run1xstep-7") is None


def test_doubled_braces_are_braces():
    naming = StepNaming("{{x}}-{step}")

    assert naming.format(7) == "{x}-7"
    assert naming.parse("{x}-7") == 7


@pytest.mark.parametrize(
    ("template", "metadata", "name"),
    [
        ("epoch-{epoch:04d}-step-{step}", {"epoch": 12, "unused": 1}, "epoch-0012-step-500"),
        ("{step:06d}-loss={val_loss:.2f}", {"val_loss": -0.314}, "000500-loss=-0.31"),
        ("{step}-{val_loss:g}", {"val_loss": 1e-20}, "500-1e-20"),
        ("{step}-{val_loss:.1f}", {"val_loss": float("nan")}, "500-nan"),
        ("{step}-{accuracy:.1%}", {"accuracy": 0.925}, "500-92.5%"),
        ("{tag}-{step}", {"tag": "warm-up-2"}, "warm-up-2-500"),
        ("{step}-{tag}", {"tag": "7-b"}, "500-7-b"),
    ],
)
def test_other_placeholders_are_filled_from_metadata_and_matched(template: str, metadata: dict, name: str):
    naming = StepNaming(template)

    assert naming.format(500, metadata) == name
    assert naming.parse(name) == 500


def test_the_format_of_a_placeholder_says_what_it_matches():
    naming = StepNaming("epoch-{epoch:04d}-step-{step}")

    assert naming.parse("epoch-3-step-500") == 500
    assert naming.parse("epoch-last-step-500") is None


def test_metadata_cannot_change_the_step():
    assert StepNaming().format(5, {"step": 6}) == "step-00000005"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, r"naming 'e{epoch:d}-{step}' needs metadata\['epoch'\] for step 5"),
        ({"epoch": "last"}, "has no fitting metadata for step 5: Unknown format code 'd'"),
        ({"epoch": None}, "has no fitting metadata for step 5"),
    ],
)
def test_missing_and_unfit_metadata_are_reported(metadata: dict, message: str):
    with pytest.raises(ValueError, match=message):
        StepNaming("e{epoch:d}-{step}").format(5, metadata)


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("a/b", "has '/' in it"),
        ("..\\x", "starts with a dot"),
        ("a\\b", r"has '\\\\' in it"),
        ("a\nb", "cannot be shown"),
        ("a\ud800", "cannot be shown"),
        (" ", "starts or ends with a space"),
        ("x" * 300, "is longer than 255 bytes"),
        ("é" * 130, "is longer than 255 bytes"),
    ],
)
def test_metadata_that_makes_a_name_unsafe_is_refused(tag: str, message: str):
    with pytest.raises(ValueError, match=message):
        StepNaming("{tag}-{step}").format(5, {"tag": tag})


def test_a_name_that_would_read_back_as_another_step_is_refused():
    naming = StepNaming("{tag}-{step}-{note}")

    assert naming.format(5, {"tag": "a", "note": "b"}) == "a-5-b"
    with pytest.raises(ValueError, match="'1-2-5-b', which does not read back as step 5"):
        naming.format(5, {"tag": "1-2", "note": "b"})


NOT_ONCE = ["", "step", "{epoch:d}", "{step}-{step}", "{a}-{step}-{a}", "{step", "step}", "{step}{epoch:d}"]
NOT_DECIMAL = [
    "{step:x}",
    "{step:,}",
    "{step:8d}",
    "{step:+d}",
    "{step:.2f}",
    "{step:0100d}",
    "{step:099999999999d}",
    "{step:{w}}",
]
NOT_PLAIN = ["{}", "{0}", "{step!r}", "{step.real}", "{step[0]}", "{x.y}-{step}", "{x!r}-{step}", "{1x}-{step}", "{x:{y}}-{step}"]


@pytest.mark.parametrize("template", [*NOT_ONCE, *NOT_DECIMAL, *NOT_PLAIN])
def test_templates_that_cannot_be_parsed_back_are_refused(template: str):
    with pytest.raises(ValueError, match=r"template|placeholder|zero-padded"):
        StepNaming(template)


BAD_ENDS = [".{step}", "..{step}", "{step}.", "{step} ", " {step}", "a" * 255 + "{step}"]
BAD_CHARACTERS = [
    "a/{step}",
    "a\\{step}",
    "a:{step}",
    "{step}*",
    "{step}?",
    "<{step}>",
    '"{step}"',
    "a|{step}",
    "a\n{step}",
    "a\x7f{step}",
]


@pytest.mark.parametrize("template", [*BAD_ENDS, *BAD_CHARACTERS, "a\0{step}", "com{step}", "LPT{step}", "COM{step}.d"])
def test_templates_that_make_unsafe_names_are_refused(template: str):
    with pytest.raises(ValueError, match="gives the name"):
        StepNaming(template)


@pytest.mark.parametrize("step", [True, False, 1.0, "5", None, np.float32(5), np.bool_(True), [5]])
def test_what_is_no_integer_is_no_step(step):
    with pytest.raises(TypeError, match="a step is an integer"):
        StepNaming().format(step)


@pytest.mark.parametrize("step", [-1, np.int8(-5)])
def test_negative_steps_are_refused(step):
    with pytest.raises(ValueError, match="a step is 0 or more, not -"):
        StepNaming().format(step)


@pytest.mark.parametrize("step", [5, np.int64(5), np.uint8(5), np.array(5)])
def test_integers_of_any_kind_are_steps(step):
    assert checked_step(step) == 5
    assert type(checked_step(step)) is int


def test_a_naming_is_a_frozen_value():
    with pytest.raises(FrozenInstanceError):
        StepNaming().template = "x{step}"

    assert StepNaming() == StepNaming("step-{step:08d}")
    assert repr(StepNaming()) == "StepNaming(template='step-{step:08d}')"


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("123", 123),
        ("step_123", 123),
        ("step-00000123", 123),
        ("ckpt-123", 123),
        ("model.ckpt-123", 123),
        ("checkpoint-123", 123),
        ("checkpoint_123", 123),
        ("iter_0000123", 123),
        ("global_step_123", 123),
        ("global_step123", 123),
        ("cp-0005.ckpt", 5),
        ("epoch_1_step_20", 20),
        ("epoch_1_step_20_loss=0.1", 20),
        ("epoch_1_step_20_loss=nan", 20),
        ("epoch=9-step=1000", 1000),
        ("epoch=9-step=1000.ckpt", 1000),
    ],
)
def test_names_of_other_tools_are_understood(name: str, step: int):
    assert parse_foreign(name) == step


@pytest.mark.parametrize(
    "name", ["", "best", "step-100-backup", "latest", "checkpoint", "tmp-123", "123.orbax-checkpoint-tmp-4", "v1.2"]
)
def test_other_names_are_not_steps(name: str):
    assert parse_foreign(name) is None


@given(st.integers(0, 10**20))
def test_foreign_schemes_never_disagree(step: int):
    for naming in FOREIGN:
        name = naming.format(step, {"epoch": 3, "loss": 0.5})

        assert [other.parse(name) for other in FOREIGN if other.parse(name) is not None] == [step]
