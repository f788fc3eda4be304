"""The commands that heal a run, as lines for a shell. They are printed, and never run from here.

The law: a line does what is said of it as it stands, but for secrets: instead of each stands `SECRET`, for whoever runs it.
"""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ckptmgr.naming import StepNaming
from ckptmgr.storage import is_remote

GRACE_S = 3600.0  # of sweeps that are given no other
SECRET = "***"

_SECRETS = re.compile(r"secret|token|passw|credential|account_key|sas|connection_string|private|authorization", re.IGNORECASE)
_OWN, _TARGET = "--storage-option", "--target-option"
_PLAIN = {"key", "username", "account_name"}  # always text
_MORE = re.compile(r"(true|false|null|none|\s*[+-]?[0-9_]+\s*)\Z|[\[{\"]", re.IGNORECASE)  # a text that would be taken for more
Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cures:
    """Commands for the run at ``url``, as the user wrote it, with these names of steps and this grace period.

    ``options`` are those of its storage, ``far_options`` those of the far tier's.
    """

    url: str
    naming: StepNaming
    grace_s: float = GRACE_S
    options: Options = field(default_factory=dict, repr=False)
    far_options: Options = field(default_factory=dict, repr=False)

    def command(self, name: str, *arguments: object, has_naming: bool = True) -> str:
        """``ckptmgr NAME RUN ...``."""
        return _line(name, self.url, *arguments, *(self._naming if has_naming else ()), *_given(_OWN, self.options))

    def of(self, url: str, naming: StepNaming | None = None) -> "Cures":
        """The same for another place of this storage, or for other names."""
        return replace(self, url=url, naming=naming or self.naming)

    def sweep(self, *arguments: str) -> str:
        """Removes leftovers that are older than the grace period."""
        return self.command("sweep", *arguments, *(() if self.grace_s == GRACE_S else ("--grace", f"{self.grace_s:g}s")))

    def delete(self, *steps: int, is_pinned: bool = False) -> str:
        """Takes steps out of the run. It asks nobody: lines that are pasted together would be its answers."""
        return self.command("delete", *steps, *(["--pinned"] if is_pinned else []), "--yes")

    def repair(self, other: str, steps: list[int]) -> str:
        """Replaces damaged steps by those of another run, once they are here."""
        return self._copy(other, self.url, steps, self.far_options, self.options, "--repair")

    def copy_to(self, other: str, steps: list[int], *, overwrite: bool) -> str:
        """Brings steps from here into another run; all, if none is named."""
        return self._copy(self.url, other, steps, self.options, self.far_options, *(["--overwrite"] if overwrite else []))

    def _copy(self, source: str, target: str, steps: list[int], options: Options, more: Options, *arguments: str) -> str:
        named = (word for step in steps for word in ("--step", step))
        if is_remote(source) and is_remote(target):  # then both have what is given for one
            more = {} if more == options else {**dict.fromkeys(options), **more}
        elif is_remote(target):
            options = {}
        given = (*_given(_OWN, options), *_given(_TARGET, more))
        return _line("cp", source, target, *named, *arguments, *self._naming, *given)

    @property
    def _naming(self) -> list[str]:
        return [] if self.naming == StepNaming() else ["--naming", self.naming.template]


def _line(name: str, *words: object) -> str:
    first, *others = map(str, words)
    # What begins with a dash would be taken for an option.
    return shlex.join(["ckptmgr", name, f"./{first}" if first.startswith("-") else first, *others])


def _given(name: str, options: Options) -> list[str]:
    """The options as they are typed."""
    return [word for key, value in options.items() for word in (name, f"{key}={_typed(key, value)}")]


def _typed(key: str, value: object) -> str:
    if _SECRETS.search(key) or (value is None and key in _PLAIN):  # that has no way to be typed
        return SECRET
    if isinstance(value, str):
        return json.dumps(value) if _MORE.match(value) and key not in _PLAIN else value
    return json.dumps(_without_secrets(value), default=lambda _: SECRET)


def _without_secrets(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: SECRET if _SECRETS.search(str(key)) else _without_secrets(item) for key, item in value.items()}
    return [_without_secrets(item) for item in value] if isinstance(value, list | tuple) else value


def shell(*words: str) -> tuple[str, ...]:
    """One command of the system; none if a word has characters that cannot be shown, which no line could give back."""
    return (shlex.join(words),) if all(word.isprintable() for word in words) else ()


def pip(package: str) -> str:
    """Installs a package."""
    return shlex.join(["pip", "install", "--upgrade", package])
