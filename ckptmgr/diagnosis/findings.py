"""What a diagnosis is made of: findings, each with what was seen, what it means, and what would heal it."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ckptmgr.errors import shown
from ckptmgr.step import JSON

Severity: TypeAlias = Literal["problem", "warning", "note"]

_ORDER: tuple[Severity, ...] = ("problem", "warning", "note")  # the gravest first


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found in a run.

    ``severity``: a ``"problem"`` loses a step or stops restores or saves; a ``"warning"`` ought to be healed; a ``"note"`` is
    only to be known. ``kind`` is a stable word for programs. ``found`` says what was seen, ``means`` what follows from it,
    ``heals`` what to do, and ``commands`` are the shell's lines for that, to be run one after another. ``step`` and ``file``
    are None where it is not about one; ``file`` is relative to the run's folder.
    """

    severity: Severity
    kind: str
    found: str
    means: str
    heals: str = ""
    commands: tuple[str, ...] = ()
    step: int | None = None
    file: str | None = None

    def to_json(self) -> dict[str, JSON]:
        """The finding as a JSON object."""
        told = {"found": self.found, "means": self.means, "heals": self.heals, "commands": list(self.commands)}
        return {"severity": self.severity, "kind": self.kind, "step": self.step, "file": self.file, **told}

    @property
    def lines(self) -> list[str]:
        """The finding as lines of text; what names and messages in it have of control characters is still there."""
        lines = [f"{self.severity}: {self.found}", f"  means: {self.means}"]
        lines += [f"  heals: {self.heals}"] if self.heals else []
        return [*lines, *(f"    $ {command}" for command in self.commands)]

    def __str__(self) -> str:
        return "\n".join(self.lines)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong with a run, the gravest first. Printed, some lines for each finding.

    ``steps`` are the committed ones, oldest save first, and ``foreign`` those of other tools. ``restores`` is the step that a
    restore without a step would give, as far as was looked: None if there is none, or if it would be an error, which
    ``refuses`` tells. ``skips`` are newer steps that it would pass over.
    """

    url: str
    location: str
    steps: tuple[int, ...] = ()
    foreign: tuple[int, ...] = ()
    restores: int | None = None
    skips: tuple[int, ...] = ()
    refuses: str = ""
    is_deep: bool = False
    findings: tuple[Finding, ...] = ()

    @property
    def severity(self) -> Literal["problem", "warning", "note", "ok"]:
        """The gravest of the findings; ``"ok"`` if there is none."""
        found = {finding.severity for finding in self.findings}
        return next((each for each in _ORDER if each in found), "ok")

    @property
    def ok(self) -> bool:
        """Whether nothing is to be healed; there may be notes."""
        return self.severity in ("note", "ok")

    def to_json(self) -> dict[str, JSON]:
        """The diagnosis as a JSON object."""
        return {
            "run": self.url,
            "location": self.location,
            "severity": self.severity,
            "ok": self.ok,
            "deep": self.is_deep,
            "steps": list(self.steps),
            "foreign": list(self.foreign),
            "restores": self.restores,
            "skips": list(self.skips),
            "refuses": self.refuses or None,
            "findings": [found.to_json() for found in self.findings],
        }

    def __str__(self) -> str:
        return "\n".join([self.summary, *map(str, self.findings)])

    @property
    def summary(self) -> str:
        """One line: how the run is, what it has, and what a restore gives."""
        has = f"{len(self.steps)} committed" if self.steps else "no committed step"
        has += f", {len(self.foreign)} of other tools" if self.foreign else ""
        return f"{self.severity}: {self.location}: {has}; {self._restore}"

    @property
    def _restore(self) -> str:
        if self.refuses:
            return f"a restore stops with an error: {self.refuses}"
        if self.restores is None:
            return "a restore finds nothing to go on with"
        skipped = f", not {shown(self.skips)}" if self.skips else ""
        return f"a restore gives step {self.restores}{skipped}"


def ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    """The gravest first; otherwise in the order in which they were found."""
    return tuple(sorted(findings, key=lambda found: _ORDER.index(found.severity)))
