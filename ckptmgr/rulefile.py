"""Files of rules, in TOML or YAML: parsed strictly, nothing in them is executed, and a slip is told with its place.

::

    select = ["model/*"]

    [[rule]]
    strip = "module."

    [[rule]]
    use = "keras-to-torch"
    layers = { conv2d = "features.0" }

    [cast]
    "*.weight" = "bfloat16"
"""

import importlib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ckptmgr.errors import MissingDependencyError, shown
from ckptmgr.rules import AnyRule, Exact, Glob

ENDINGS = (".toml", ".yaml", ".yml")
MOST_NBYTES = 1 << 20
_MOST_RULES = 1000
_FORMS = {
    ("strip",): lambda fields: (fields["strip"], ""),
    ("add",): lambda fields: ("", fields["add"]),
    ("prefix", "to"): lambda fields: (fields["prefix"], fields["to"]),
    ("glob", "to"): lambda fields: Glob(fields["glob"], fields["to"]),
    ("regex", "to"): lambda fields: (_pattern(fields["regex"], fields["to"]), fields["to"]),
}
_TABLES = ("layers", "kinds")


@dataclass(frozen=True, slots=True)
class Use:
    """A built-in set, with its options."""

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RuleFile:
    """What a file holds, in its order."""

    rules: Sequence[AnyRule | Use]
    select: tuple[str, ...] | None
    cast: dict[str, str] | None


def read(path: str | os.PathLike[str]) -> RuleFile:
    """The rules in a local file.

    Raises:
        ValueError: it is no rule file: not its format, too large, unknown keys, a pattern that could run for ever.
        MissingDependencyError: it is YAML, and PyYAML is not installed.
        OSError: from the disk.
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        data = file.read(MOST_NBYTES + 1)
    if len(data) > MOST_NBYTES:
        raise ValueError(f"{name!r} has more than the {MOST_NBYTES >> 20} MiB that a file of rules may have")
    try:
        return _rules(_toml(data) if name.lower().endswith(".toml") else _yaml(data))
    except ValueError as error:
        raise ValueError(f"{name!r} is no file of rules: {error}") from error


def _toml(data: bytes) -> Any:
    try:
        return tomllib.loads(data.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _yaml(data: bytes) -> Any:
    try:
        yaml = importlib.import_module("yaml")
    except ImportError as error:
        raise MissingDependencyError("rules in YAML need PyYAML: pip install 'ckptmgr[yaml]', or write them in TOML") from error
    if re.search(rb"(^|[\s\[{,:-])[&*][^\s*]", re.sub(rb"\"[^\"\n]*\"|'[^'\n]*'", b"''", data)):
        raise ValueError("it has anchors or aliases (quote names that begin with * or &)")
    try:
        return yaml.safe_load(data.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _rules(value: Any) -> RuleFile:
    fields = _table(value, "the file")
    _check_keys(fields, ("rule", "select", "cast"), "the file")
    entries = fields.get("rule", [])
    if not isinstance(entries, list) or len(entries) > _MOST_RULES:
        raise ValueError(f"'rule' must be a list of at most {_MOST_RULES} tables")
    select = fields.get("select")
    if select is not None and not (isinstance(select, list) and all(isinstance(glob, str) for glob in select)):
        raise ValueError("'select' must be a list of globs")
    rules = [_rule(entry, f"rule {number}") for number, entry in enumerate(entries, 1)]
    cast = _texts(fields["cast"], "cast") if "cast" in fields else None
    return RuleFile(rules, None if select is None else tuple(select), cast)


def _rule(value: Any, what: str) -> AnyRule | Use:
    fields = _table(value, what)
    if "use" in fields:
        _check_keys(fields, ("use", "under", *_TABLES), what)
        options = {key: _texts(fields[key], f"{key} of {what}") for key in _TABLES if key in fields}
        under = {"under": _text(fields, "under", what)} if "under" in fields else {}
        return Use(_text(fields, "use", what), {**options, **under})
    if set(fields) == {"names"}:
        return Exact(_texts(fields["names"], f"names of {what}"))
    for keys, make in _FORMS.items():
        if set(fields) == set(keys):
            return _made(make, {key: _text(fields, key, what) for key in keys}, what)
    forms = [*(" + ".join(keys) for keys in _FORMS), "names", "use"]
    raise ValueError(f"{what} has the keys {shown(sorted(map(str, fields)))}, and must have those of one of {shown(forms, 9)}")


def _made(make: Any, fields: Mapping[str, str], what: str) -> AnyRule:
    try:
        rule: AnyRule = make(fields)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    return rule


def _pattern(text: str, replacement: str) -> re.Pattern[str]:
    try:
        _check_bounded(text)
        pattern = re.compile(text)
        pattern.sub(replacement, "")
        re.compile(f"{text}|").sub(replacement, "")  # matches, so that groups in the replacement are looked up
    except (re.error, IndexError, RecursionError, OverflowError) as error:
        raise ValueError(f"regex {text!r} to {replacement!r}: {error}") from error
    return pattern


def _check_bounded(text: str) -> None:
    """Raises ValueError for a repeat within a repeat, such as ``(a+)+``, which takes for ever on some names."""
    plain = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", text, flags=re.DOTALL)
    open_groups: list[bool] = [False]
    for at, mark in enumerate(plain):
        if mark == "(":
            open_groups.append(False)
        elif mark == ")" and len(open_groups) > 1:
            has_repeat = open_groups.pop()
            if has_repeat and re.match(r"[*+{]", plain[at + 1 :]):
                raise ValueError(f"regex {text!r} repeats what repeats in it, which can take for ever: use a glob")
            open_groups[-1] |= has_repeat
        elif mark in "*+{|" or (mark == "?" and plain[at - 1 : at] not in ("(", "")):
            open_groups[-1] = True


def _table(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{what} must be a table, not {type(value).__name__}")
    return value


def _texts(value: Any, what: str) -> dict[str, str]:
    table = _table(value, what)
    if wrong := [key for key, text in table.items() if not isinstance(text, str)]:
        raise ValueError(f"{shown(wrong)} in {what} must be text")
    return dict(table)


def _text(fields: Mapping[str, Any], key: str, what: str) -> str:
    text = fields[key]
    return text if isinstance(text, str) else _refuse(f"{key!r} of {what} must be text, not {type(text).__name__}")


def _refuse(text: str) -> NoReturn:
    raise ValueError(text)


def _check_keys(fields: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    if wrong := [key for key in fields if key not in known]:
        raise ValueError(f"{what} has the unknown key {shown(wrong)}: there are {shown(known, 9)}")
