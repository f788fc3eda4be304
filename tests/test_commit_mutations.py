"""The interleavings of `test_commit_laws` would show a broken protocol: mutations as in `commit_model`, of the real code."""

from collections.abc import Callable
from typing import Any

import pytest
from interleaving import Violation
from test_commit_laws import explore, restless

from ckptmgr import commit, ledger, sweep
from ckptmgr.commit import Attempt
from ckptmgr.errors import SaveError, StepExistsError
from ckptmgr.ledger import Found, Unreadable, change, look
from ckptmgr.manifest import MANIFEST
from ckptmgr.record import Claim, Hold, Record, encode
from ckptmgr.storage import Answer, Folder

__all__ = ["restless"]  # a fixture

Patch = pytest.MonkeyPatch


def patch_change(patch: Patch, changed: Callable[..., Answer]) -> None:
    for module in (ledger, commit, sweep):
        patch.setattr(module, "change", changed)
    patch.setattr(commit, "changed", lambda *args: (changed(*args), None))


def lost_is_loss(patch: Patch) -> None:
    def lost(self: Attempt, record: Record, *, doubtful: bool) -> Exception:
        return StepExistsError() if record.manifest else SaveError()

    patch.setattr(Attempt, "_lost", lost)


def plain_remove(patch: Patch) -> None:
    def changed(folder: Folder, found: Found | Unreadable | None, new: Record) -> Answer:
        if not new.is_empty:
            return change(folder, found, new)
        folder.delete([MANIFEST])
        return Answer.OK

    patch_change(patch, changed)


def check_then_put(patch: Patch) -> None:
    def changed(folder: Folder, found: Found | Unreadable | None, new: Record) -> Answer:
        read = folder.read(MANIFEST)
        if (read and read[1]) != (found and found.version):
            return Answer.NO
        if new.is_empty:
            folder.delete([MANIFEST])
        else:
            folder.write(MANIFEST, encode(new))
        return Answer.OK

    patch_change(patch, changed)


def files_first(patch: Patch) -> None:
    drop = commit.drop

    def dropped(root: Folder, found: Found, **later: Any) -> Answer:
        assert found.record.manifest is not None
        if found.record.manifest.attempt not in found.record.renewed(manifest=None).named:
            commit.delete_files(root.folder(found.name), found.record.manifest.attempt)
        return drop(root, found, **later)

    patch.setattr(commit, "drop", dropped)


def held_files_too(patch: Patch) -> None:
    drop = commit.drop

    def dropped(root: Folder, found: Found, **later: Any) -> Answer:
        answer = drop(root, found, **later)
        if answer is Answer.OK and found.record.manifest:
            commit.delete_files(root.folder(found.name), found.record.manifest.attempt)
        return answer

    patch.setattr(commit, "drop", dropped)


def no_hold(patch: Patch) -> None:
    patch.setattr(commit, "hold", lambda root, name, step, attempt, by: True)


def hold_of_the_dead(patch: Patch) -> None:
    def hold(root: Folder, name: str, step: int, attempt: str, by: Attempt) -> bool:
        found = look(root, name, step)
        if not isinstance(found, Found):
            return False
        holds = found.record.holds | {Hold(attempt, by.step, by.attempt)}
        return commit.change(root.folder(name), found, found.record.renewed(holds=holds)) is Answer.OK

    patch.setattr(commit, "hold", hold)


def release_first(patch: Patch) -> None:
    drop = commit.drop

    def dropped(root: Folder, found: Found, **later: Any) -> Answer:
        assert found.record.manifest is not None
        commit.release(root, found.record.manifest)
        return drop(root, found, **later)

    patch.setattr(commit, "drop", dropped)


def sequence_from_memory(patch: Patch) -> None:
    patch.setattr(commit, "largest_sequence", lambda root, naming, **_: 0)


def sweep_reads_first(patch: Patch) -> None:
    listed, read = sweep._listed, {}

    def listed_late(folder: Folder) -> Any:
        name = folder.prefix.removesuffix("/")
        read[folder.store, name] = look(Folder(folder.store), name, int(name.removeprefix("step-")))
        return listed(folder)

    patch.setattr(sweep, "_listed", listed_late)
    patch.setattr(sweep, "look", lambda root, name, step: read.get((root.store, name)) or look(root, name, step))


def unclaimed(patch: Patch) -> None:
    def begin(root: Folder, name: str, step: int, *, overwrite: bool) -> Attempt:
        found = look(root, name, step)
        if found and isinstance(found, Found) and found.record.manifest and not overwrite:
            raise StepExistsError
        return Attempt(root, name, step, Claim(commit.new_attempt(), 0), overwrite)

    patch.setattr(commit, "begin", begin)
    patch.setattr(Attempt, "_is_mine", lambda self, claim: True)


def retention_decides_anew(patch: Patch) -> None:
    def collect(root: Folder, victims: list[Found]) -> list[Found]:
        return [found for found in victims if commit.delete(root, found.name, found.step)]

    patch.setattr(commit, "collect", collect)


@pytest.mark.parametrize(
    ("mutate", "name", "law"),
    [
        (lost_is_loss, "writer, sweep, delete, lossy", "I2"),
        (plain_remove, "two writers, sweep over debris", "I3"),
        (check_then_put, "overwrite, collect, sweep", "I"),
        (files_first, "collect, pin", "I1"),
        (held_files_too, "incremental, delete, sweep", "I1"),
        (no_hold, "incremental, delete, sweep", "I1"),
        (hold_of_the_dead, "incremental, overwrite, sweep", "I1"),
        (release_first, "holders go", "I1"),
        (sequence_from_memory, "save below the newest, collect", "I8"),
        (sweep_reads_first, "overwrite, reader, sweep", "I1"),
        (unclaimed, "overwrite, delete, writer", "I"),
        (retention_decides_anew, "collect, pin", "I3"),
    ],
)
def test_breaking_the_code_is_noticed(
    mutate: Callable[[Patch], None], name: str, law: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)

    with pytest.raises(Violation, match=f"^{law}"):
        explore(name, range(2000))
