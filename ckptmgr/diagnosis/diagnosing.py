"""Explains a sick run: what was found, what it means, and what would heal it.

The law: it changes nothing. No call is made that writes, touches, or tries whether a store would be written to.
"""

import errno
import os
import time
from collections.abc import Mapping
from typing import Any

from ckptmgr.diagnosis import tiers
from ckptmgr.diagnosis.beside import Beside, foreign_steps, links
from ckptmgr.diagnosis.contents import Contents, broken, damaged_files, wrong_files
from ckptmgr.diagnosis.cures import GRACE_S, Cures, shell
from ckptmgr.diagnosis.findings import Diagnosis, Finding, ordered
from ckptmgr.diagnosis.leftovers import Leftovers
from ckptmgr.diagnosis.looking import Look, look
from ckptmgr.diagnosis.place import Place
from ckptmgr.diagnosis.records import Records, refusal, told
from ckptmgr.diagnosis.storing import Storing
from ckptmgr.errors import CorruptCheckpointError
from ckptmgr.naming import StepNaming
from ckptmgr.storage import Folder, open_folder
from ckptmgr.transfer import Progress

_MOVED = ("renamed-step", "link", "other-naming")


def diagnose(
    url: str | os.PathLike[str],
    *,
    naming: StepNaming = StepNaming(),  # noqa: B008 - a frozen value
    deep: bool = False,
    grace_s: float = GRACE_S,
    remote: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    remote_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Says what is wrong with the run at ``url``, what that means, and what would heal it. Changes nothing.

    It may run beside saves: what may be one in progress, because it has shown a sign of life within ``grace_s`` seconds, is a
    note. Records are read and sizes of files compared; with ``deep`` every byte of every step is read too, and ``progress`` is
    called with the bytes done and in all. ``remote`` is the far tier of the run, if it has one: then steps are told that are not
    there yet. ``naming`` is that of the run, and ``storage_options`` and ``remote_options`` are for the two places. What is wrong
    with the run is never raised, also not that nothing is there.

    Raises:
        ValueError: no store is for such a URL, or ``grace_s`` is negative or undefined.
        OSError: the storage cannot be reached.
    """
    text = os.fspath(url)
    if not grace_s >= 0:
        raise ValueError(f"a grace period is 0 seconds or more, not {grace_s}")
    far = None if remote is None else os.fspath(remote)
    root = open_folder(text, storage_options)
    cures = Cures(text, naming, grace_s, storage_options or {}, remote_options or {})
    try:
        seen = look(root, naming, time.time())
    except PermissionError as error:
        return _closed(text, root, error)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        found = f"nothing can be at {text!r}: {error.strerror}"
        finding = Finding("problem", "nothing-there", found, "Restores and saves stop with that error.", "Check the path.")
        return Diagnosis(text, root.location(), refuses=str(error.strerror), findings=(finding,))
    place = Place(text, seen, cures, storage_options)
    if place.is_empty:
        return Diagnosis(text, root.location(), findings=tuple(place.findings(has_steps=False)))
    return _examined(seen, place, cures, far, remote_options, deep=deep, progress=progress)


def _examined(
    seen: Look,
    place: Place,
    cures: Cures,
    remote: str | None,
    remote_options: Mapping[str, Any] | None,
    *,
    deep: bool,
    progress: Progress | None,
) -> Diagnosis:
    (others, hidden), wrong = foreign_steps(seen), wrong_files(seen)
    if deep:
        damaged, seen = damaged_files(seen, wrong, progress)
        wrong = [each for each in wrong if each.stops] + damaged
    committed = seen.committed
    far = None if remote is None else tiers.remote(remote, remote_options, seen)
    known = [*(each.info.step for each in others), *(step.step for step in committed)]
    linked = links(seen)
    falls_to, skips, refuses = _restored(seen, known, broken(wrong), [link.step for link in linked], hidden)
    placed = list(place.findings(has_steps=bool(known)))
    is_run = bool(known) or not any(finding.severity == "problem" for finding in placed)
    records = list(Records(seen, cures, far).findings())
    beside = list(Beside(seen, cures, others, linked).findings(is_run=is_run))
    is_moved = any(finding.kind in _MOVED for finding in [*placed, *records, *beside])
    findings: list[Finding] = [
        *placed,
        *records,
        *Contents(seen, cures, far, is_moved).findings(wrong, falls_to),
        *Leftovers(seen, cures).findings(),
        *beside,
        *Storing(seen, cures).findings(),
        *(tiers.findings(seen, cures, far, {step for each in wrong for step in each.steps}) if far else ()),
    ]
    return Diagnosis(
        place.url,
        seen.root.location(),
        steps=tuple(step.step for step in committed),
        foreign=tuple(each.info.step for each in others),
        restores=falls_to,
        skips=skips,
        refuses=refuses,
        is_deep=deep,
        findings=ordered(findings),
    )


def _restored(
    seen: Look, known: list[int], bad: set[int], linked: list[int], hidden: OSError | None
) -> tuple[int | None, tuple[int, ...], str]:
    """The step that a restore without a step gives, those that it passes over, and why it would be an error."""
    if refuses := refusal(seen) or (told(seen, hidden) if hidden else ""):
        return None, (), refuses
    damaged = [step.step for step in seen.steps.values() if isinstance(step.trouble, CorruptCheckpointError)]
    skips = dict.fromkeys([*damaged, *linked])  # of these it warns in any case
    own = {step.step: step for step in seen.committed}
    for step in reversed(known):
        if step in own and (closed := own[step].listed.closed):
            return None, tuple(skips), told(seen, closed)
        if step not in own or step not in bad:
            return step, tuple(skips), ""
        skips[step] = None
    return None, tuple(skips), "no step passes its checks" if skips else ""


def _closed(url: str, root: Folder, error: PermissionError) -> Diagnosis:
    where = root.location()
    found = f"{where!r} cannot be listed: {error.strerror}"
    means = "Whether anything is lost cannot be told. Restores and saves from here stop with that error."
    finding = Finding("problem", "unreadable", found, means, "Give this user the permission.", shell("chmod", "u+rwx", where))
    return Diagnosis(url, where, refuses=f"{where}: {error.strerror}", findings=(finding,))
