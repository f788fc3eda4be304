"""Two tiers of a run: which steps the far one lacks."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from ckptmgr.copying import content
from ckptmgr.diagnosis.cures import Cures
from ckptmgr.diagnosis.findings import Finding
from ckptmgr.diagnosis.looking import Look, StepFolder
from ckptmgr.diagnosis.words import steps
from ckptmgr.due import due
from ckptmgr.errors import CheckpointError
from ckptmgr.finding import Committed, Run
from ckptmgr.retention import KeepAll
from ckptmgr.step import StepInfo
from ckptmgr.storage import open_folder


class Remote(NamedTuple):
    """The far tier: its committed steps, or the error of looking for them."""

    url: str
    known: Mapping[int, Committed] = {}
    error: Exception | None = None

    @property
    def steps(self) -> list[StepInfo]:
        """The steps, oldest first."""
        return [known.info for known in self.known.values()]

    def has(self, step: StepFolder) -> bool:
        """Whether it has the same step; of one whose record is damaged, one of its number."""
        there = self.known.get(step.step)
        return there is not None and (step.manifest is None or content(there.manifest) == content(step.manifest))


def remote(url: str, options: Mapping[str, Any] | None, look: Look) -> Remote:
    """Looks at the far tier."""
    try:
        found = Run(open_folder(url, options), look.naming).steps()
    except (OSError, CheckpointError) as error:
        return Remote(url, error=error)
    return Remote(url, {known.info.step: known for known in found.committed})


def findings(look: Look, cures: Cures, far: Remote, broken: Collection[int]) -> Iterator[Finding]:
    """What is not in the far tier and could be, unless it is ``broken``, and that the tier cannot be reached."""
    if far.error is not None:
        found = f"the remote tier {far.url!r} cannot be looked at: {far.error}"
        means = "Which steps are safe there is not known. Local saves go on; copies wait until it answers."
        yield Finding("warning", "remote-unreachable", found, means, "Mend the connection or the credentials, and look again.")
        return
    local = [step.committed(look.root).info for step in look.committed if step.step not in broken]
    missing = sorted(info.step for info in due(local, far.steps, KeepAll()))
    if missing:
        found = f"{steps(missing)}: not yet in the remote tier {far.url!r}"
        means = "If this machine is lost, so are they. Steps that the remote tier's own retention would not keep need no copy."
        heals = "A TieredManager copies them at its next save, wait or start; or copy them now."
        # Another step of the number that is there is older: a TieredManager replaces it too.
        command = cures.copy_to(far.url, missing if len(missing) <= 20 else [], overwrite=any(map(far.known.get, missing)))
        yield Finding("warning", "not-in-remote", found, means, heals, (command,), step=missing[-1])
