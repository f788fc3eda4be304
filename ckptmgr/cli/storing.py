"""Options of the storage on the command line: ``--storage-option endpoint_url=http://localhost:9000``."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import typer

from ckptmgr.cli.output import usage
from ckptmgr.storage import is_remote

Given: TypeAlias = Sequence[str] | Mapping[str, Any] | None  # options as they were typed, or as they are meant

Storage = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option",
        metavar="KEY=VALUE",
        help="For the storage, such as endpoint_url=URL; repeatable.",
        show_default=False,
    ),
]
TargetStorage = Annotated[
    list[str] | None,
    typer.Option("--target-option", metavar="KEY=VALUE", help="The same, for the target's storage alone.", show_default=False),
]

# Their values are text, whatever they look like.
_TEXTS = {"key", "secret", "token", "username", "password", "account_name", "account_key", "sas_token", "client_secret"}
_WORDS = {"true": True, "false": False, "null": None, "none": None}


def storage_options(given: Given, option: str = "--storage-option") -> dict[str, Any]:
    """``KEY=VALUE`` as storage options: numbers, true, false, null and JSON as what they mean, else text.

    Raises BadParameter.
    """
    if isinstance(given, Mapping):
        return dict(given)
    options = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{text!r} is no KEY=VALUE", param_hint=option)
        with usage(option):
            options[key] = value if key in _TEXTS and value[:1] != "{" else _value(value)
    return options


def options_of_both(source: str, target: str, given: Given, more: Given) -> tuple[dict[str, Any], dict[str, Any]]:
    """Storage options of two places: ``given`` for those that are remote (for both, if none is), ``more`` for the target too."""
    options = storage_options(given)
    remote = [url for url in (source, target) if is_remote(url)]
    for_source, for_target = (options if url in remote or not remote else {} for url in (source, target))
    return for_source, {**for_target, **storage_options(more, "--target-option")}


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if text[:1] in ("{", "[", '"'):
        return json.loads(text)
    try:
        return int(text)
    except ValueError:
        return text
