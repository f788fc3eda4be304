"""What the doctor advises loses nothing that can be restored, repeats nothing, and runs as it stands."""

import itertools
import os
import shlex
from pathlib import Path

import pytest
from incrementals import no_links, small_groups
from incrementals import state as parts
from runs import state
from sickness import file_of, flip, found, obey, on_a_disk, saved
from test_diagnosis import cut, looked, restored, run
from typer.testing import CliRunner

from ckptmgr import CheckpointManager, StepNaming, copy, diagnose
from ckptmgr.cli.app import app
from ckptmgr.cli.storing import options_of_both, storage_options
from ckptmgr.diagnosis.cures import SECRET, Cures

__all__ = ["on_a_disk", "run"]


# ---- what a restore does not need


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[9] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    ("backend", "file", "harm"),
    [
        ("tf_bundle", "model.index", flip),
        ("tf_bundle", "model.index", Path.unlink),
        ("tf_bundle", "model.index", cut),
        ("safetensors", "model.safetensors", longer),
        ("safetensors", "model.safetensors", header),
    ],
)
def test_damage_that_a_restore_passes_by_is_no_reason_to_delete(
    tmp_path: Path, backend: str, file: str, harm: object, deep: bool
) -> None:
    saved(tmp_path / "run", backend=backend)
    harm(file_of(tmp_path / "run", 300, file))  # type: ignore[operator]

    diagnosis = looked(tmp_path / "run", deep=deep)

    assert (diagnosis.restores, restored(tmp_path / "run"), diagnosis.skips) == (300, 300, ())
    told = [(each.severity, each.commands) for each in diagnosis.findings]
    assert told in ([("warning", ())], [] if not deep else None)


# ---- no step goes that could come back


def test_a_damaged_step_stays_until_the_remote_tier_has_brought_another(run: Path, tmp_path: Path) -> None:
    copy(run, tmp_path / "far")
    CheckpointManager(run).pin(300, "paper")
    for each in (run, tmp_path / "far"):
        cut(file_of(each, 300))

    finding = found(looked(run, remote=tmp_path / "far"), "damaged-file")
    done = CliRunner().invoke(app, shlex.split(finding.commands[0])[1:])

    assert (len(finding.commands), done.exit_code) == (1, 1)
    assert looked(run).steps == (100, 200, 300)


def test_another_step_of_the_number_in_the_remote_tier_is_no_cure(run: Path, tmp_path: Path) -> None:
    CheckpointManager(tmp_path / "far").save(300, state(9))
    cut(file_of(run, 300))

    finding = found(looked(run, remote=tmp_path / "far"), "damaged-file")

    assert [command.split()[1] for command in finding.commands] == ["delete"]


def test_a_damaged_record_is_brought_back_from_the_remote_tier(run: Path, tmp_path: Path) -> None:
    copy(run, tmp_path / "far")
    flip(run / "step-00000300" / "manifest.json")

    obey(found(looked(run, remote=tmp_path / "far"), "damaged-record"))

    assert restored(run) == 300


def test_an_older_step_in_the_remote_tier_is_replaced_and_a_damaged_one_not_sent(run: Path, tmp_path: Path) -> None:
    copy(run, tmp_path / "far", steps=[100])
    CheckpointManager(run).save(100, state(7), overwrite=True)
    cut(file_of(run, 200))

    obey(found(looked(run, remote=tmp_path / "far"), "not-in-remote"))

    assert {info.step for info in CheckpointManager(tmp_path / "far").steps()} == {100, 300}
    assert CheckpointManager(tmp_path / "far").restore(100).state["epoch"] == 7


def test_steps_whose_folders_changed_places_are_not_deleted(run: Path) -> None:
    (run / "step-00000200").rename(run / "x")
    (run / "step-00000300").rename(run / "step-00000200")
    (run / "x").rename(run / "step-00000300")

    told = [each for each in looked(run).findings if each.severity == "problem"]

    assert [(each.kind, each.commands) for each in told] == [("renamed-step", ())] * 2


def test_files_that_went_with_a_renamed_folder_are_no_reason_to_delete(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with small_groups(), no_links():
        manager = CheckpointManager(run, incremental=True)
        for step in (1, 2, 3):
            manager.save(step, parts(step, size=1 << 18))
    (run / "step-00000001").rename(run / "step-00000009")

    told = {each.kind: each.commands for each in looked(run).findings}

    assert told["damaged-file"] == ()
    obey(found(looked(run), "renamed-step"))
    assert (looked(run, deep=True).severity, restored(run)) == ("ok", 3)


def test_a_damaged_folder_beside_the_good_one_of_a_step_does_not_take_that_with_it(tmp_path: Path) -> None:
    run, naming = tmp_path / "run", StepNaming("s{step:d}-{tag}")
    manager = CheckpointManager(run, naming=naming)
    manager.save(7, state(7), metadata={"tag": "a"})
    (run / "s7-b").mkdir()
    (run / "s7-b" / "manifest.json").write_bytes(b"{")

    finding = found(looked(run, naming=naming), "damaged-record")

    assert finding.commands == ()
    assert "Move the folder 's7-b' out" in finding.heals


# ---- no cure twice, and none that does nothing


def test_two_wrong_files_of_a_step_are_one_deletion(run: Path) -> None:
    cut(file_of(run, 300))
    file_of(run, 300, "tree.json").unlink()
    CheckpointManager(run).pin(300, "paper")

    told = [each.commands for each in looked(run).findings]

    assert told == [(f"ckptmgr delete {run} 300 --pinned --yes",), ()]


def test_a_link_to_another_step_of_the_run_is_taken_away(run: Path) -> None:
    (run / "step-00000900").symlink_to("step-00000300")

    obey(found(looked(run), "link"))

    assert looked(run).severity == "ok"


def test_what_others_put_into_an_attempts_folder_is_a_note(run: Path) -> None:
    (run / "step-00000300" / "a-0123456789abcdef" / "mine").mkdir(parents=True)

    assert found(looked(run), "unnamed-attempt").severity == "note"


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_lock_that_is_no_file_stops_saves_and_is_taken_away(run: Path, kind: str) -> None:
    lock = run / ".ckptmgr.lock"
    lock.unlink(missing_ok=True)
    lock.mkdir() if kind == "folder" else lock.symlink_to("/nowhere")
    with pytest.raises(OSError, match="lock"):
        CheckpointManager(run).save(400, state(4))

    obey(found(looked(run), "lock"))

    assert CheckpointManager(run).save(400, state(4)).step == 400


def test_an_empty_folder_is_told_as_such(tmp_path: Path) -> None:
    finding = found(diagnose(tmp_path), "nothing-there")

    assert "is an empty folder" in finding.found
    assert finding.commands == ()


def test_a_path_that_begins_with_a_dash_is_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cut(file_of(saved(tmp_path / "-run").folder.location(), 300))  # type: ignore[arg-type]

    obey(found(diagnose("-run"), "damaged-file"))

    assert diagnose("-run").ok


# ---- options of the storage

OPTIONS = {
    "endpoint_url": "http://x:9",
    "key": "123",
    "anon": True,
    "retries": 3,
    "region": "7",
    "config": {"a": [1, "b"]},
    "x": None,
}


def given(command: str, name: str) -> list[str]:
    words = shlex.split(command)
    return [value for option, value in itertools.pairwise(words) if option == name]


def test_commands_carry_the_options_of_the_storage() -> None:
    assert storage_options(given(Cures("s3://b/run", StepNaming(), options=OPTIONS).sweep(), "--storage-option")) == OPTIONS


@pytest.mark.parametrize("far", ["s3://far/run", "/disk/far"])
@pytest.mark.parametrize("here", ["s3://b/run", "/disk/run"])
def test_copies_carry_the_options_of_both_storages(here: str, far: str) -> None:
    own = OPTIONS if "://" in here else {}
    theirs: dict[str, object] = {"endpoint_url": "http://y:8"} if "://" in far else {}
    cures = Cures(here, StepNaming(), options=own, far_options=theirs)

    for command, first, second in (
        (cures.copy_to(far, [1], overwrite=False), own, theirs),
        (cures.repair(far, [1]), theirs, own),
    ):
        source, target = shlex.split(command)[2:4]
        parsed = options_of_both(source, target, given(command, "--storage-option"), given(command, "--target-option"))
        assert (parsed[0], {key: value for key, value in parsed[1].items() if value not in (None, SECRET) or key in second}) == (
            first,
            second,
        )


def test_no_secret_is_printed() -> None:
    options = {"secret": "hush", "client_kwargs": {"aws_session_token": "hush"}, "sas_token": "hush", "key": "me"}

    command = Cures("s3://b/run", StepNaming(), options=options).sweep()

    assert "hush" not in command
    assert given(command, "--storage-option")[0] == f"secret={SECRET}"


def test_nobody_waits_for_a_pipe_in_the_place_of_the_lock(run: Path) -> None:
    (run / ".ckptmgr.lock").unlink(missing_ok=True)
    os.mkfifo(run / ".ckptmgr.lock")

    assert diagnose(run).ok
