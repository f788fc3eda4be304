"""The commands that heal a run, as lines for a shell. They are printed, and never run from here."""

import json
import shlex
from dataclasses import dataclass

from ckptmgr.naming import StepNaming

GRACE_S = 3600.0  # of sweeps that are given no other


@dataclass(frozen=True, slots=True)
class Cures:
    """Commands for the run at ``url``, as the user wrote it, with these names of steps and this grace period."""

    url: str
    naming: StepNaming
    grace_s: float = GRACE_S

    def command(self, name: str, *arguments: object, has_naming: bool = True) -> str:
        """``ckptmgr NAME RUN ...``."""
        return shlex.join(["ckptmgr", name, self.url, *map(str, arguments), *(self._naming if has_naming else ())])

    def sweep(self) -> str:
        """Removes leftovers that are older than the grace period."""
        return self.command("sweep", *(() if self.grace_s == GRACE_S else ("--grace", f"{self.grace_s:g}s")))

    def delete(self, step: int) -> str:
        """Takes a step out of the run."""
        return self.call(f"delete({step})")

    def call(self, call: str) -> str:
        """A call of the manager, where no command does it."""
        is_default = self.naming == StepNaming()
        naming = "" if is_default else f", naming=ckptmgr.StepNaming({_quoted(self.naming.template)})"
        return shlex.join(["python", "-c", f"import ckptmgr; ckptmgr.CheckpointManager({_quoted(self.url)}{naming}).{call}"])

    def copy_from(self, other: str, step: int) -> str:
        """Brings a step here from another run."""
        return shlex.join(["ckptmgr", "cp", other, self.url, "--step", str(step), *self._naming])

    def copy_to(self, other: str, steps: list[int]) -> str:
        """Brings steps from here into another run."""
        return self.command("cp", other, *(word for step in steps for word in ("--step", step)))

    @property
    def _naming(self) -> list[str]:
        return [] if self.naming == StepNaming() else ["--naming", self.naming.template]


def _quoted(text: str) -> str:
    """The text as Python writes it, if possible without the quotes that a shell's line has around it."""
    return json.dumps(text, ensure_ascii=False) if text.isprintable() else repr(text)


def shell(*words: str) -> tuple[str, ...]:
    """One command of the system; none if a word has characters that cannot be shown, which no line could give back."""
    return (shlex.join(words),) if all(word.isprintable() for word in words) else ()


def pip(package: str) -> str:
    """Installs a package."""
    return shlex.join(["pip", "install", "--upgrade", package])
