"""Files of rules: what they say in TOML and in YAML, and that a hostile one is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest

import ckptmgr
from ckptmgr import Glob, Layers, MissingDependencyError, Rules, convert, load
from ckptmgr.rules import Exact

TOML = r"""
select = ["fc.*"]
[[rule]]
strip = "module/"
[[rule]]
prefix = "net/"
to = ""
[[rule]]
glob = "*/w"
to = "*/kernel"
[[rule]]
regex = '^(\w+)/v$'
to = '\1/bias'
[[rule]]
names = { "old/kernel" = "fc/kernel", "old/bias" = "fc/bias" }
[[rule]]
use = "keras-to-torch"
layers = { fc = "fc" }
kinds = { extra = "drop" }
[cast]
"*.weight" = "float16"
"""
YAML = r"""
select: ["fc.*"]
rule:
  - strip: module/
  - {prefix: net/, to: ""}
  - {glob: "*/w", to: "*/kernel"}
  - {regex: '^(\w+)/v$', to: '\1/bias'}
  - names: {old/kernel: fc/kernel, old/bias: fc/bias}
  - {use: keras-to-torch, layers: {fc: fc}, kinds: {extra: drop}}
cast: {"*.weight": float16}
"""


def written(tmp_path: Path, text: str | bytes, name: str = "rules.toml") -> Path:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return tmp_path / name


@pytest.mark.parametrize(("text", "name"), [(TOML, "rules.toml"), (YAML, "rules.yaml")])
def test_a_file_does_what_it_says(tmp_path: Path, text: str, name: str) -> None:
    state = {"module/net/old/w": np.ones((2, 3)), "module/old/v": np.ones(3), "extra": np.ones(1)}
    ckptmgr.save(tmp_path / "a.safetensors", state)

    report = convert(tmp_path / "a.safetensors", tmp_path / "b.npz", rename=written(tmp_path, text, name))

    found = load(tmp_path / "b.npz")
    assert {name: (value.shape, value.dtype.name) for name, value in found.items()} == {
        "fc.weight": ((3, 2), "float16"),
        "fc.bias": ((3,), "float64"),
    }
    assert report.left_out == ("extra",)


def test_both_forms_are_the_same_rules(tmp_path: Path) -> None:
    one, other = Rules.of(written(tmp_path, TOML)), Rules.of(str(written(tmp_path, YAML, "rules.yml")))

    assert one == other
    assert isinstance(one.rules[2], Glob)
    assert isinstance(one.rules[4], Exact)
    assert one.rules[5] == Layers("keras-to-torch", {"fc": "fc"}, {"extra": "drop"})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rule = 3", "'rule' must be a list"),
        ("rules = []", "unknown key 'rules'"),
        ("[[rule]]\nstrip = 3", "'strip' of rule 1 must be text"),
        ("[[rule]]\nglob = '*'", "rule 1 has the keys 'glob'"),
        ("[[rule]]\nglob = 'a'\nto = '*'", "fewer"),
        ("[[rule]]\nregex = '('\nto = ''", "regex"),
        ("[[rule]]\nregex = 'a'\nto = '\\2'", "invalid group reference"),
        ("[[rule]]\nregex = '(a+)+$'\nto = ''", "take for ever"),
        ("[[rule]]\nregex = '((a|b)c*){2,}$'\nto = ''", "take for ever"),
        ("[[rule]]\nregex = '(?:x[)]|x*)*y'\nto = ''", "take for ever"),
        ("[[rule]]\nuse = 'rules.toml'", "no built-in set"),
        ("[[rule]]\nuse = 'strip-module'\nunder = 'x'", "no built-in set that takes 'under'"),
        ("[[rule]]\nuse = 'keras-to-torch'\nlayers = { a = 3 }", "'a' in layers of rule 1"),
        ("select = 'x'", "list of globs"),
        ("[[rule]]\n" * 1001, "at most 1000"),
        ("x = " + "[" * 5000, "no file of rules"),
        (b"\xff", "no file of rules"),
        ("#" * (1 << 20) + "#", "1 MiB"),
    ],
)
def test_a_hostile_file_is_refused_with_its_name(tmp_path: Path, text: str | bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        Rules.of(written(tmp_path, text))

    assert "rules.toml" in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "rule: !!python/object/apply:os.system [touch harm]",
        "a: &a [x]\nrule: [*a, *a]",
        "rule: &a [*a]",
        "- rule",
        "rule: [{strip: 3}]",
        "rule: [" + "[" * 3000,
        "rule: {",
    ],
)
def test_hostile_yaml_is_refused_and_nothing_runs(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"rules\.yaml"):
        Rules.of(written(tmp_path, text, "rules.yaml"))

    assert not Path("harm").exists()


def test_yaml_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)

    with pytest.raises(MissingDependencyError, match=r"ckptmgr\[yaml\]"):
        Rules.of(written(tmp_path, YAML, "rules.yaml"))


def test_a_harmless_regex_with_groups_is_taken(tmp_path: Path) -> None:
    text = "[[rule]]\nregex = '^(\\w+)[*]/(?:x|y)?([^)]+)$'\nto = '\\2.\\1'"

    [(pattern, _)] = Rules.of(written(tmp_path, text)).rules  # type: ignore[misc]
    assert pattern.groups == 2  # type: ignore[union-attr]
