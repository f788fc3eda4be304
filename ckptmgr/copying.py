"""Copies of committed steps in other runs, on any storage: the same step, committed there by the same protocol.

The law: a copy is a step like any other. It is claimed, its files are written, and it appears in one moment, with all that the
manifest tells but where its files lie: step, sequence, run, time, format, metrics, metadata, writer, pins, checksums. It has
all of its files itself, also those that the original shares with other steps.

A copy that was interrupted is gone on with. Its claim tells which attempt is being copied, and whoever copies that again takes
the claim over with the attempt in it, whose files are then those it needs, because their bytes are fixed. Only a replaced
record gets such a mark: a create that arrives late could bring back a claim that was swept, and with it an attempt whose files
somebody may still be deleting.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from ckptmgr import commit, transfer
from ckptmgr.checkpoint import files_of
from ckptmgr.commit import Attempt
from ckptmgr.errors import CorruptCheckpointError, FormatVersionError, SaveError, StepExistsError, StepNotFoundError
from ckptmgr.filecopy import copy_file
from ckptmgr.finding import Committed, Run
from ckptmgr.foreign import Foreign
from ckptmgr.hints import Hints
from ckptmgr.ledger import Found, Unreadable, changed, check, gave_up, look, read_record, tries
from ckptmgr.manifest import ASSET, FileEntry, Manifest, folder_name, this_writer
from ckptmgr.naming import StepNaming, checked_step
from ckptmgr.step import JSON, StepInfo
from ckptmgr.storage import Answer, Folder, ParallelStore, is_local, open_folder
from ckptmgr.transfer import Progress
from ckptmgr.transfer.lanes import share
from ckptmgr.transfer.stats import Tally

COPY = "copy_of"  # the field of a claim that has the attempt which is being copied

Readback: TypeAlias = Literal["full", "fast"]
Wanted: TypeAlias = int | Iterable[int] | Literal["all", "latest"]


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of a step that was to be copied. ``info`` is the step in the target.

    ``sent`` are the files that were written now, of ``nbytes`` bytes; ``found`` those that an interrupted copy had written.
    Both are empty if the step ``was_there`` already.
    """

    info: StepInfo
    sent: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    nbytes: int = 0
    was_there: bool = False


class NotCopied(NamedTuple):
    """A step that was not copied, and why."""

    step: int
    error: Exception


class Chosen(NamedTuple):
    """The steps that are meant, oldest first; those whose record cannot be read; and steps of other tools that are left out."""

    steps: list[Committed]
    failed: list[NotCopied]
    left_out: list[Foreign]


def copy(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    steps: Wanted = "all",
    overwrite: bool = False,
    repair: bool = False,
    verify: Readback = "full",
    naming: StepNaming = StepNaming(),  # noqa: B008 - a frozen value
    src_options: Mapping[str, Any] | None = None,
    dst_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> list[Copied]:
    """Copies committed steps of the run at ``src`` into the run at ``dst``, oldest first, and gives what became of each.

    ``steps`` are ``"all"``, ``"latest"``, a step number or several. A copy is the same step: it keeps its place in the order of
    saves, its run, time, metrics, metadata, assets, format and pins. A step that is there with the same content is passed over,
    and what an interrupted copy has written is not written again: to go on after any interruption, call this again. One step
    that cannot be copied does not keep the others from it. With ``repair`` what is there already is looked at too, and a damaged
    copy is replaced once a good one is there: until then it stays. ``verify`` says what of the written files is read back before
    the step is committed, and what a repair looks at: ``"full"``, every byte; ``"fast"``, sizes. ``naming`` is that of both runs;
    ``src_options`` and ``dst_options`` are for their storages. ``progress`` is called with bytes done and in all. Steps of other
    tools are no committed steps: adopt them first.

    Raises:
        StepNotFoundError: ``src`` has no such step, or none at all.
        StepExistsError: another step of that number is there, and ``overwrite`` is not set.
        CorruptCheckpointError: a step of ``src`` is damaged. Like other errors of one step it is raised when all others are
            copied, with notes of further ones.
        OSError: from either storage; what was copied stays.
    """
    source, target = Run(open_folder(src, src_options), naming), Run(open_folder(dst, dst_options), naming)
    chosen, failures, _ = choose(source, steps)
    copied: list[Copied] = []
    try:
        for each in copy_steps(source, chosen, target, overwrite=overwrite, repair=repair, verify=verify, progress=progress):
            if isinstance(each, Copied):
                copied.append(each)
            else:
                failures.append(each)
    except OSError as error:
        for failed in failures:
            error.add_note(f"before, step {failed.step} was not copied: {failed.error}")
        raise
    if failures:
        for other in failures[1:]:
            failures[0].error.add_note(f"step {other.step} was not copied either: {other.error}")
        raise failures[0].error
    return copied


def choose(source: Run, steps: Wanted) -> Chosen:
    """The steps that are meant.

    Raises:
        StepNotFoundError: there is no such step, or none at all.
        CorruptCheckpointError: the record of a step that is asked for by its number is damaged.
    """
    if not isinstance(steps, str):
        numbers = steps if isinstance(steps, Iterable) else [steps]
        found = {known.info.step: known for known in map(source.find_own, map(checked_step, numbers))}
        return Chosen(sorted(found.values(), key=lambda known: known.info.order), [], [])
    if steps not in ("all", "latest"):
        raise ValueError(f"steps must be 'all', 'latest' or step numbers, not {steps!r}")
    known = source.steps(has_closed=steps == "all")  # else nobody knows which is the latest
    damaged = [NotCopied(entry.step, entry.error) for entry in known.unreadable]
    if not (known.committed or damaged):
        raise source.not_found(None, known)
    if steps == "latest" and known.committed:  # those of other tools are older
        return Chosen(known.committed[-1:], [], [])
    return Chosen(known.committed, damaged, known.foreign)


def copy_step(
    source: Run,
    known: Committed,
    target: Run,
    *,
    overwrite: bool = False,
    instead_of: str | None = None,
    anew: bool = False,
    verify: Readback = "full",
    progress: Progress | None = None,
) -> Copied:
    """Copies a committed step into another run. When this returns the copy is durable, whole, and seen by every reader.

    Every byte is compared with the manifest when it is read. With ``verify`` ``"full"`` what the target has stored is read back
    and compared too, before it is committed; with ``"fast"`` the sizes that it tells, and the bytes of files that an interrupted
    copy has left. ``progress`` is called in this thread with the bytes of this step that are in the target; what it raises ends
    the copy like any interruption: what was written stays there, and is not written again next time. Retention is not applied,
    and hints for other tools are not refreshed. With ``anew`` and ``overwrite`` a damaged copy is replaced. ``instead_of`` is
    the attempt that may be overwritten, and no other is.

    Raises:
        StepExistsError: another step of that number is there, and ``overwrite`` is not set.
        StepNotFoundError: the step was deleted or overwritten in the source meanwhile, or what it is to be instead of is gone.
        CorruptCheckpointError: a file of the source is damaged; nothing is left in the target.
        SaveError: the target keeps other bytes than it was sent, or another writer has taken the step over.
        CommitUnknownError: the target gave no definite answer to the commit.
        OSError: from either store.
    """
    check(source.folder, known.found)
    manifest = known.manifest
    name = target.name_of(manifest.step) or target.naming.format(manifest.step, manifest.metadata)
    here = look(target.folder, name, manifest.step)
    if not anew and (there := _there(target, name, manifest, here)):
        return there
    if not overwrite:
        target.refuse_foreign(manifest.step)
    attempt, is_resumed = _claim(target.folder, name, known, here, overwrite=overwrite)
    with _given_up_if_useless(source, known, attempt):
        files = files_of(source.folder, known.found.name, manifest)
        sent, found = _send(files, attempt.folder, manifest.files, is_resumed=is_resumed, verify=verify, progress=progress)
        copy = replace(manifest, attempt=attempt.attempt, files=tuple(replace(entry, origin=None) for entry in manifest.files))
        info = attempt.commit(
            target.naming, copy, before_delete=lambda old: Hints(target).replaced(name, old), instead_of=instead_of
        )
    return Copied(info, _names(sent), _names(found), sum(entry.nbytes for entry in sent))


def copy_steps(
    source: Run,
    chosen: Sequence[Committed],
    target: Run,
    *,
    overwrite: bool = False,
    repair: bool = False,
    verify: Readback = "full",
    progress: Progress | None = None,
) -> Iterator[Copied | NotCopied]:
    """Copies steps one after another, and tells what became of each; that one cannot be copied does not keep others from it.

    ``repair`` is as for `copy`. ``progress`` counts the bytes of all of them. Raises OSError, from either store, unless it is of
    a file of the step that a local source does not let be read; what was copied stays.
    """
    done, total = 0, sum(known.manifest.nbytes for known in chosen)

    def tell(nbytes: int, _: int) -> None:
        if progress is not None:
            progress(done + nbytes, total)

    for known in chosen:
        try:
            if repair and (repaired := _repaired(source, known, target, verify=verify, progress=tell)):
                yield repaired
            else:
                yield copy_step(source, known, target, overwrite=overwrite, verify=verify, progress=tell)
        except (CorruptCheckpointError, SaveError, StepExistsError, StepNotFoundError) as error:
            yield NotCopied(known.info.step, error)
        except OSError as error:
            if not _is_within(source.folder.folder(known.found.name), error):
                raise
            yield NotCopied(known.info.step, error)
        done += known.manifest.nbytes
        tell(0, 0)
    Hints(target).refresh()


def plan_steps(
    source: Run, chosen: Sequence[Committed], target: Run, *, overwrite: bool, repair: bool, verify: Readback
) -> Iterator[Copied | NotCopied]:
    """What `copy_steps` would tell now, as far as it shows without reading the sources' files. Nothing is changed.

    The ``info`` of a step that would be copied is that of its original. Raises OSError, from either store.
    """
    for known in chosen:
        try:
            yield _planned(source, known, target, overwrite=overwrite, repair=repair, verify=verify)
        except (CorruptCheckpointError, StepExistsError, FormatVersionError) as error:
            yield NotCopied(known.info.step, error)


def _planned(source: Run, known: Committed, target: Run, *, overwrite: bool, repair: bool, verify: Readback) -> Copied:
    check(source.folder, known.found)
    manifest, step = known.manifest, known.info.step
    name = target.name_of(step) or target.naming.format(step, manifest.metadata)
    here = look(target.folder, name, step)
    is_repaired = repair and _to_repair(known, target, name, here, verify)
    if not is_repaired and (there := _there(target, name, manifest, here)):
        return there
    if isinstance(here, Unreadable) and isinstance(here.error, FormatVersionError):
        raise here.error
    if not (overwrite or is_repaired):
        target.refuse_foreign(step)
        commit.claimable(target.folder, here, overwrite=False)
    claim = here.record.claim if isinstance(here, Found) and _may_commit(here, overwrite) else None
    found: list[FileEntry] = []
    if claim and claim.extra.get(COPY) == manifest.attempt:  # an interrupted copy, which is gone on with
        found = _whole(target.folder.folder(name).folder(folder_name(claim.attempt)), manifest.files)
    sent = [entry for entry in manifest.files if entry not in found]
    return Copied(known.info, _names(sent), _names(found), sum(entry.nbytes for entry in sent))


def _is_within(folder: Folder, error: OSError) -> bool:
    """Whether the error is of a file in that folder; only local stores name a file in all of theirs."""
    return is_local(folder.store) and str(error.filename).startswith(f"{folder.location()}/")


def _repaired(source: Run, known: Committed, target: Run, *, verify: Readback, progress: Progress) -> Copied | None:
    """A copy in the place of a damaged one; None if there is none, or nothing is wrong with it, or it is another step."""
    name = target.name_of(known.info.step) or target.naming.format(known.info.step, known.manifest.metadata)
    found = look(target.folder, name, known.info.step)
    if not _to_repair(known, target, name, found, verify):
        return None
    there = found.record.manifest if isinstance(found, Found) else None
    instead_of = there.attempt if there else None
    return copy_step(source, known, target, overwrite=True, instead_of=instead_of, anew=True, verify=verify, progress=progress)


def _to_repair(known: Committed, target: Run, name: str, found: Found | Unreadable | None, verify: Readback) -> bool:
    there = found.record.manifest if isinstance(found, Found) else None
    if there:
        return content(there) == content(known.manifest) and _is_damaged(target, name, there, verify)
    return isinstance(found, Unreadable) and isinstance(found.error, CorruptCheckpointError)


def _is_damaged(run: Run, name: str, manifest: Manifest, verify: Readback) -> bool:
    files = files_of(run.folder, name, manifest)
    return bool(transfer.check(files, map(_facts, manifest.files), full=verify == "full"))


def content(manifest: Manifest) -> JSON:
    """What manifests of the same step have in common: all but which attempt wrote the files, where they lie, and the sequence."""
    files = {entry.name: [entry.nbytes, entry.crc32c, entry.extra.get(ASSET)] for entry in manifest.files}
    told = replace(manifest, attempt="", sequence=0, files=(), writer={}, extra={}).to_json()
    return {**told, "crc32c": None, "files": files}


def _there(target: Run, name: str, manifest: Manifest, found: Found | Unreadable | None) -> Copied | None:
    """The step, if it is in the target already."""
    there = found.record.manifest if isinstance(found, Found) else None
    if not isinstance(found, Found) or there is None or content(there) != content(manifest):
        return None
    path = target.folder.location(f"{name}/{folder_name(there.attempt)}")
    return Copied(there.info(found.record.pins, name=name, path=path), was_there=True)


def _claim(
    root: Folder, name: str, known: Committed, found: Found | Unreadable | None, *, overwrite: bool
) -> tuple[Attempt, bool]:
    """An attempt with the mark of a copy, and whether it is one that was interrupted and is now gone on with.

    ``found`` is what has just been read of the record. Pins go into it with the mark: no retention ever sees the step without.
    """
    step, original = known.info.step, known.manifest.attempt
    for number in tries():
        found = found if number == 1 else look(root, name, step)
        claim = found.record.claim if isinstance(found, Found) else None
        is_resumed = claim is not None and claim.extra.get(COPY) == original and _may_commit(found, overwrite)
        if not is_resumed:
            begun = commit.begin(root, name, step, overwrite=overwrite)
            claim, found = begun.claim, begun.found or read_record(root, name, step)
        if not isinstance(found, Found) or claim is None or found.record.claim != claim:
            continue  # another writer was faster, or a sweep
        mine = replace(claim, number=claim.number + 1, writer=this_writer(), extra={**claim.extra, COPY: original})
        record = found.record.renewed(claim=mine, pins=found.record.pins | known.found.record.pins)
        answer, sight = changed(root.folder(name), found, record)
        if answer is Answer.OK:
            made = Found(name, step, record, sight.version, sight.data) if sight else None
            return Attempt(root, name, step, mine, overwrite, made), is_resumed
    raise gave_up(root, name, "claimed")


def _may_commit(found: object, overwrite: bool) -> bool:
    return isinstance(found, Found) and (overwrite or found.record.manifest is None)


@contextmanager
def _given_up_if_useless(source: Run, known: Committed, attempt: Attempt) -> Iterator[None]:
    """Abandons a copy that nobody will ever go on with, because its original is damaged or gone. Any other is left as it is."""
    try:
        yield
    except CorruptCheckpointError as error:
        attempt.abandon()
        found = look(source.folder, known.found.name, known.info.step)
        now = found.record.manifest if isinstance(found, Found) else None
        if now is None or now.attempt != known.manifest.attempt:
            text = f"step {known.info.step} in {known.info.path!r} was deleted or overwritten while it was copied"
            raise StepNotFoundError(text, step=known.info.step) from error
        error.step = known.info.step
        raise


def _send(
    files: Folder,
    target: Folder,
    entries: Sequence[FileEntry],
    *,
    is_resumed: bool,
    verify: Readback,
    progress: Progress | None,
) -> tuple[list[FileEntry], list[FileEntry]]:
    """Writes the files that are not there; gives those that it has written, and those that were there."""
    found = _whole(target, entries) if is_resumed else []
    missing = [entry for entry in entries if entry not in found]
    tally = Tally(progress, sum(entry.nbytes for entry in entries))
    tally.add(sum(entry.nbytes for entry in found))

    def send(entries: Iterable[FileEntry]) -> None:
        for entry in entries:
            copy_file(files, target, entry, tell=tally.add)

    # Small files wait for their store's answers, and do that at once; the others have parts that are on their way at once.
    nfiles = max([1, *(folder.store.files_at_once for folder in (files, target) if isinstance(folder.store, ParallelStore))])
    most = max(files.store.window_nbytes, target.store.window_nbytes) if nfiles > 1 else -1
    small = [entry for entry in missing if entry.nbytes <= most]
    share(small, send, min(nfiles, len(small)))
    send(entry for entry in missing if entry.nbytes > most)
    if verify == "full" and (problems := transfer.check(target, map(_facts, missing))):
        # They are left: who copies this step again will see what is wrong with them, and write them again.
        raise SaveError(f"{problems[0].message}, though these were written: nothing is committed; copy the step again")
    return missing, found


def _whole(target: Folder, entries: Sequence[FileEntry]) -> list[FileEntry]:
    """The files that are in the folder, with all their bytes."""
    sizes = {name: head.nbytes for name, head in target.list().files.items()}
    alike = [entry for entry in entries if sizes.get(entry.name) == entry.nbytes]
    wrong = {problem.file for problem in transfer.check(target, map(_facts, alike))}
    return [entry for entry in alike if entry.name not in wrong]


def _facts(entry: FileEntry) -> tuple[str, int, int]:
    return entry.name, entry.nbytes, entry.crc32c


def _names(entries: Iterable[FileEntry]) -> tuple[str, ...]:
    return tuple(entry.name for entry in entries)
