"""The doctor finds each sickness of a run, and what it prints heals it."""

import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from runs import state
from sickness import file_of, flip, found, killed, obey, on_a_disk, saved, snapshot
from syscalls import counting, dying_at, in_child

from ckptmgr import (
    CheckpointError,
    CheckpointManager,
    CorruptCheckpointError,
    Diagnosis,
    KeepLast,
    copy,
    diagnose,
    save,
)
from ckptmgr.record import Record, encode, seal

__all__ = ["on_a_disk"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of the steps 100, 200 and 300."""
    saved(tmp_path / "run")
    return tmp_path / "run"


def looked(run: Path, **options: object) -> Diagnosis:
    """A diagnosis to which every sign of life is old, and that has changed nothing."""
    before = snapshot(run)
    diagnosis = diagnose(run, grace_s=0, **options)  # type: ignore[arg-type]
    assert snapshot(run) == before
    return diagnosis


def restored(run: Path) -> int | None:
    return CheckpointManager(run).restore().step


def test_a_healthy_run_has_nothing(run: Path) -> None:
    diagnosis = looked(run, deep=True)

    assert (diagnosis.severity, diagnosis.steps, diagnosis.restores, diagnosis.skips) == ("ok", (100, 200, 300), 300, ())
    assert str(diagnosis) == f"ok: {run}: 3 committed; a restore gives step 300"


# ---- files of committed steps


def cut(path: Path) -> None:
    os.truncate(path, 10)


@pytest.mark.parametrize("harm", [cut, Path.unlink])
def test_a_cut_or_missing_file_is_told_with_the_step_that_restores_instead(run: Path, harm: Callable[[Path], None]) -> None:
    harm(file_of(run, 300))

    diagnosis = looked(run)
    finding = found(diagnosis, "damaged-file")

    assert (diagnosis.severity, finding.step, diagnosis.restores, diagnosis.skips) == ("problem", 300, 200, (300,))
    assert "goes back to step 200" in finding.means
    with pytest.warns(RuntimeWarning, match="step 300 is skipped"):
        assert restored(run) == 200
    obey(finding)
    assert looked(run).ok
    assert restored(run) == 200


def test_a_damaged_older_step_leaves_the_newest(run: Path) -> None:
    file_of(run, 100, "tree.json").unlink()

    diagnosis = looked(run)

    assert (diagnosis.restores, diagnosis.skips, diagnosis.severity) == (300, (), "problem")
    assert "a newer one is there" in found(diagnosis, "damaged-file").means


def test_a_flipped_byte_is_found_only_deep(run: Path) -> None:
    flip(file_of(run, 300))

    assert looked(run).ok
    diagnosis = looked(run, deep=True)

    assert diagnosis.restores == 200
    assert "tensor" in found(diagnosis, "damaged-file").found
    obey(found(diagnosis, "damaged-file"))
    assert looked(run, deep=True).ok


def test_a_missing_asset_does_not_keep_the_state_from_being_restored(run: Path) -> None:
    file_of(run, 300, "config.json").unlink()

    diagnosis = looked(run)

    assert (diagnosis.restores, found(diagnosis, "damaged-file").severity) == (300, "warning")
    assert restored(run) == 300


def test_a_damaged_step_is_brought_back_from_the_remote_tier(run: Path, tmp_path: Path) -> None:
    copy(run, tmp_path / "far")
    cut(file_of(run, 300))

    obey(found(looked(run, remote=tmp_path / "far"), "damaged-file"))

    assert looked(run, deep=True, remote=tmp_path / "far").ok
    assert restored(run) == 300


def test_when_every_step_is_damaged_a_restore_is_an_error(run: Path) -> None:
    for step in (100, 200, 300):
        cut(file_of(run, step))

    diagnosis = looked(run)

    assert (diagnosis.restores, diagnosis.refuses) == (None, "no step passes its checks")
    assert "finds no older one" in next(each.means for each in diagnosis.findings if each.step == 300)


# ---- records


def test_a_damaged_record_is_told_and_taken_out(run: Path) -> None:
    flip(run / "step-00000300" / "manifest.json")

    diagnosis = looked(run)

    assert (found(diagnosis, "damaged-record").step, diagnosis.restores, diagnosis.skips) == (300, 200, (300,))
    obey(found(diagnosis, "damaged-record"))
    left = looked(run)
    obey(found(left, "unnamed-attempt"))
    assert looked(run).ok
    assert restored(run) == 200


def test_a_renamed_step_gets_its_name_back(run: Path) -> None:
    (run / "step-00000200").rename(run / "step-00000777")

    diagnosis = looked(run)

    assert "the record of step 200" in found(diagnosis, "renamed-step").found
    obey(found(diagnosis, "renamed-step"))
    assert looked(run).steps == (100, 200, 300)
    assert looked(run).ok


def test_a_copied_step_is_taken_out_and_the_original_stays(run: Path) -> None:
    shutil.copytree(run / "step-00000200", run / "step-00000777")

    obey(found(looked(run), "renamed-step"))

    assert looked(run, deep=True).severity == "ok"
    assert looked(run).steps == (100, 200, 300)


def test_a_record_of_a_newer_format_stops_restores(run: Path) -> None:
    record = run / "step-00000200" / "manifest.json"
    text = record.read_bytes().replace(b'"format_version": 1', b'"format_version": 2')
    record.write_bytes(seal(text[: text.rindex(b'  "crc32c"')]))

    diagnosis = looked(run)

    assert (diagnosis.restores, found(diagnosis, "newer-format").severity) == (None, "problem")
    assert "format version 2" in diagnosis.refuses
    assert found(diagnosis, "newer-format").commands == ("pip install --upgrade ckptmgr",)


def test_a_folder_of_links_is_no_step(run: Path, tmp_path: Path) -> None:
    (run / "step-00000300").rename(tmp_path / "elsewhere")
    (run / "step-00000300").symlink_to(tmp_path / "elsewhere")

    diagnosis = looked(run)

    assert (diagnosis.restores, found(diagnosis, "link").step) == (200, 300)
    obey(found(diagnosis, "link"))
    assert looked(run).ok
    assert restored(run) == 300


HARMS: list[Callable[[Path, int], object]] = [
    lambda run, step: None,
    lambda run, step: flip(file_of(run, step)),
    lambda run, step: cut(file_of(run, step)),
    lambda run, step: file_of(run, step).unlink(),
    lambda run, step: file_of(run, step, "tree.json").unlink(),
    lambda run, step: flip(file_of(run, step, "tree.json")),
    lambda run, step: flip(file_of(run, step, "config.json")),
    lambda run, step: flip(run / f"step-{step:08d}" / "manifest.json"),
    lambda run, step: (run / f"step-{step:08d}" / "manifest.json").unlink(),
    lambda run, step: CheckpointManager(run).delete(step),
]


@pytest.mark.parametrize("seed", range(25))
def test_a_restore_does_what_the_doctor_says(run: Path, seed: int) -> None:
    chance = random.Random(seed)
    for step in (100, 200, 300):
        chance.choice(HARMS)(run, step)
    diagnosis = looked(run, deep=True)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            restored: object = CheckpointManager(run).restore()
        except CheckpointError as error:
            restored = error
    skipped = [str(each.message).split()[1] for each in caught]

    assert diagnosis.restores == getattr(restored, "step", None) or isinstance(restored, CheckpointError), str(diagnosis)
    assert (diagnosis.restores is None) == isinstance(restored, CheckpointError)
    assert bool(diagnosis.refuses) == isinstance(restored, CorruptCheckpointError)
    assert list(map(str, diagnosis.skips)) == skipped


@pytest.mark.parametrize("target", ["anywhere", "nowhere"])
def test_no_command_leads_to_where_a_strange_link_leads(run: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "anywhere").mkdir()
    (run / "step-00000400").symlink_to(tmp_path / target)

    assert found(looked(run), "link").commands == ()


# ---- leftovers


@pytest.mark.parametrize("step", [300, 400])
def test_a_killed_save_is_told_and_swept(run: Path, step: int) -> None:
    killed(lambda: CheckpointManager(run).save(step, state(step), overwrite=True), "ckptmgr.commit.Attempt.commit")

    assert diagnose(run).severity == "note"  # it might be in progress
    diagnosis = looked(run)
    finding = found(diagnosis, "interrupted-save")

    assert (finding.step, diagnosis.restores) == (step, 300)
    assert "no such process runs" in finding.found
    obey(finding)
    assert looked(run).severity == "ok"


def test_wherever_a_save_is_killed_the_doctor_finds_what_a_sweep_removes(run: Path) -> None:
    with counting() as calls:
        CheckpointManager(run).save(999, state(9))
    CheckpointManager(run).delete(999)

    for at in range(0, len(calls), max(1, len(calls) // 12)):

        def dies(at: int = at) -> None:
            with dying_at(at + 1, when="after"):
                CheckpointManager(run).save(400, state(400))

        in_child(dies)
        told = looked(run)
        swept = CheckpointManager(run).sweep(grace=0)
        assert told.ok == (not (swept.files or swept.claims or swept.uploads)), (at, str(told), swept)
        assert looked(run).severity == "ok"
        if 400 in looked(run).steps:
            CheckpointManager(run).delete(400)


def test_a_killed_deletion_is_told_and_swept(run: Path) -> None:
    killed(lambda: CheckpointManager(run).delete(200), "ckptmgr.commit.delete_committed")

    finding = found(looked(run), "unnamed-attempt")

    assert finding.step == 200
    assert "a deletion was interrupted" in finding.means
    obey(finding)
    assert looked(run).severity == "ok"
    assert not (run / "step-00000200").exists()


def test_a_killed_collection_is_told_and_swept(run: Path) -> None:
    killed(lambda: CheckpointManager(run, retention=KeepLast(1)).collect(), "ckptmgr.commit.delete_committed")

    obey(found(looked(run), "unnamed-attempt"))

    assert looked(run).severity == "ok"


def test_a_killed_copy_is_gone_on_with(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    killed(lambda: copy(run, target, steps=100), "ckptmgr.commit.Attempt.commit")

    finding = found(looked(target), "interrupted-copy")
    assert "ckptmgr cp" in finding.heals
    copy(run, target, steps=100)
    assert looked(target).severity == "ok"


def test_a_killed_copy_is_swept(run: Path, tmp_path: Path) -> None:
    killed(lambda: copy(run, tmp_path / "target", steps=100), "ckptmgr.commit.Attempt.commit")

    obey(found(looked(tmp_path / "target"), "interrupted-copy"))

    assert found(diagnose(tmp_path / "target"), "nothing-there")


def test_a_killed_adoption_is_finished(run: Path) -> None:
    save(run / "ckpt-50.safetensors", {"w": np.zeros(3)})
    assert found(looked(run), "foreign-step").step == 50
    killed(lambda: CheckpointManager(run).adopt(), "ckptmgr.adopting.Adoption._delete")

    obey(found(looked(run), "half-adopted"))

    assert looked(run).severity == "ok"
    assert looked(run).steps == (50, 100, 200, 300)


def test_foreign_steps_are_adopted(run: Path) -> None:
    save(run / "ckpt-50.safetensors", {"w": np.zeros(3)})

    diagnosis = looked(run)

    assert (diagnosis.foreign, diagnosis.severity) == ((50,), "note")
    obey(found(diagnosis, "foreign-step"))
    assert looked(run).steps == (50, 100, 200, 300)


def test_pins_of_no_step_are_swept(run: Path) -> None:
    (run / "step-00000400").mkdir()
    (run / "step-00000400" / "manifest.json").write_bytes(encode(Record(pins=frozenset({"paper"}))))

    finding = found(looked(run), "pin-of-no-step")

    assert "paper" in finding.found
    obey(finding)
    assert looked(run).severity == "ok"


def test_stale_hints_are_written_anew(tmp_path: Path) -> None:
    saved(tmp_path / "run", backend="tf_bundle")
    hint = (tmp_path / "run" / "checkpoint").read_bytes()
    (tmp_path / "run" / "checkpoint").write_bytes(b"")

    obey(found(looked(tmp_path / "run"), "stale-hint"))

    assert (tmp_path / "run" / "checkpoint").read_bytes() == hint
    assert looked(tmp_path / "run").severity == "ok"


def test_files_of_nobody_are_a_note(run: Path) -> None:
    (run / "notes.txt").write_text("x")
    (run / "step-00000300" / "mine\x1b[2J").write_text("x")

    notes = [each.found for each in looked(run).findings]

    assert len(notes) == 2
    assert "'mine\\x1b[2J'" in notes[0]
    assert "'notes.txt'" in notes[1]
    assert looked(run).severity == "note"


def test_a_negative_grace_period_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="grace"):
        diagnose(run, grace_s=-1)
