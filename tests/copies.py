"""Copies of steps between stores, for tests: small files whose bytes tell who wrote them, and what a copy must be."""

from typing import Any

from interleaving import recorded
from saves import NAMING, places
from stores import MemoryStore

from ckptmgr.copying import Copied, content, copy_step
from ckptmgr.finding import Run
from ckptmgr.manifest import parse_attempt
from ckptmgr.storage import Folder
from ckptmgr.sweep import sweep


def run(store: Any) -> Run:
    return Run(Folder(store), NAMING)


def copied(source: Any, step: int, target: Any, **options: Any) -> Copied:
    return copy_step(run(source), run(source).find_own(step), run(target), **options)


def is_copy(source: MemoryStore, target: MemoryStore, step: int) -> bool:
    """Whether the target has the very same step, whole, with all its files in its own folder."""
    original, copy = (recorded(store)[step].manifest if step in recorded(store) else None for store in (source, target))
    if original is None or copy is None or content(original) != content(copy) or original.sequence != copy.sequence:
        return False
    wanted = {entry.name: data for _, entry, data in places(NAMING.format(step), original)}
    return files_of(target, step) == wanted


def files_of(store: MemoryStore, step: int) -> dict[str, bytes | None]:
    """What lies in the folder of the step's attempt, of the files that its manifest names."""
    manifest = recorded(store)[step].manifest
    assert manifest is not None
    folder = Folder(store).folder(NAMING.format(step)).folder(f"a-{manifest.attempt}")
    return {entry.name: (folder.read(entry.name) or (None,))[0] for entry in manifest.files}


def check_aftermath(store: MemoryStore) -> None:
    """Sweep leaves the committed steps and nothing else."""
    before = {step: record.manifest for step, record in recorded(store).items() if record.manifest}
    sweep(Folder(store), NAMING, grace_s=0)
    assert {step: record.manifest for step, record in recorded(store).items() if record.manifest} == before
    assert [step for step, record in recorded(store).items() if record.claim] == []
    live = {manifest.attempt for manifest in before.values()}
    assert {parse_attempt(key.split("/")[1]) for key in store.files} - {None} <= live
    assert all(None not in files_of(store, step).values() for step in before)
