"""What a migration did, step by step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ckptmgr.errors import shown
from ckptmgr.step import JSON, StepInfo

How = Literal["copied", "converted", "there"]


@dataclass(frozen=True, slots=True)
class Migrated:
    """A step that is in the target: byte for byte, converted, or there already. ``info`` is the step there.

    ``lost`` is what was not taken along, with the reason; a tensor never is.
    """

    info: StepInfo
    how: How
    lost: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NotMigrated:
    """A step that is not in the target now: the kind of error that it met, by its name, and what it says."""

    step: int
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class MigrateReport:
    """What became of the steps of ``source`` that were to be migrated into ``target``: both lists oldest save first."""

    source: str
    target: str
    steps: tuple[Migrated, ...]
    failed: tuple[NotMigrated, ...]

    def done(self, how: How) -> list[int]:
        """Numbers of the steps of which that became."""
        return [each.info.step for each in self.steps if each.how == how]

    def __str__(self) -> str:
        counts = ", ".join(f"{len(done)} {how}" for how in ("copied", "converted", "there") if (done := self.done(how)))
        lines = [f"{self.source!r} to {self.target!r}: {counts or 'no step'}."]
        lines += [
            f"step {each.info.step}, NOT taken along: {shown([f'{name} ({why})' for name, why in each.lost.items()])}."
            for each in self.steps
            if each.lost
        ]
        lines += [f"step {each.step} FAILED ({each.kind}): {each.message}" for each in self.failed]
        return "\n".join(lines)

    def to_json(self) -> dict[str, JSON]:
        """All of it as plain JSON."""
        done = [
            {
                "step": each.info.step,
                "status": each.how,
                "sequence": each.info.sequence,
                "attempt": each.info.attempt,
                "backend": each.info.backend,
                "nbytes": each.info.nbytes,
                "path": each.info.path,
                "lost": dict(each.lost),
            }
            for each in self.steps
        ]
        failed = [{"step": each.step, "status": "failed", "kind": each.kind, "message": each.message} for each in self.failed]
        return {"source": self.source, "target": self.target, "steps": [*done, *failed]}
