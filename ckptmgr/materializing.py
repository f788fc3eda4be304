"""Makes a step self-contained that refers to files of older ones.

The law: it is an overwrite by a new attempt, which has all files itself and the same place in the order of steps. Until it is
committed the step is as it was; the manifest that was copied is the only one that is replaced.
"""

from collections.abc import Callable
from dataclasses import replace

from ckptmgr import commit
from ckptmgr.checkpoint import files_of
from ckptmgr.errors import CorruptCheckpointError, StepNotFoundError
from ckptmgr.filecopy import copy_file
from ckptmgr.finding import Run
from ckptmgr.ledger import read_record
from ckptmgr.manifest import Manifest
from ckptmgr.step import StepInfo
from ckptmgr.storage import Folder


def materialize(run: Run, step: int, *, before_delete: Callable[[str, Manifest], object]) -> StepInfo:
    """Copies every file of the step, checked, into a new attempt that replaces the old one; nothing if it refers to none.

    Raises:
        StepNotFoundError: no such step, or it was deleted meanwhile.
        CorruptCheckpointError: a file is not what was written; the step is as it was.
    """
    known = run.find_own(step)
    if not any(entry.origin for entry in known.manifest.files):
        return known.info
    root, name = run.folder, known.found.name
    attempt = commit.begin(root, name, step, overwrite=True)
    with attempt.undone_if_it_fails():
        # Read under the claim: an overwrite that came before it must not be undone, and one that comes now takes it.
        manifest = _manifest(root, name, step)
        files = files_of(root, name, manifest)
        try:
            entries = tuple(copy_file(files, attempt.folder, entry) for entry in manifest.files)
        except CorruptCheckpointError as error:
            if _manifest(root, name, step).attempt == manifest.attempt:
                raise
            raise _gone(root, name, step) from error
        new = replace(manifest, attempt=attempt.attempt, files=entries)
        return attempt.commit(
            run.naming, lambda _: new, before_delete=lambda old: before_delete(name, old), instead_of=manifest.attempt
        )


def _manifest(root: Folder, name: str, step: int) -> Manifest:
    found = read_record(root, name, step)
    if found is None or found.record.manifest is None:
        raise _gone(root, name, step)
    return found.record.manifest


def _gone(root: Folder, name: str, step: int) -> StepNotFoundError:
    return StepNotFoundError(f"step {step} in {root.location(name)!r} was deleted meanwhile: nothing was changed", step=step)
