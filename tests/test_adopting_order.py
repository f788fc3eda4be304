"""The order of steps when those of other tools are adopted: it never changes, so retention keeps the newest of all."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pointing import PointingBackend, write_foreign
from runs import state

from ckptmgr import CheckpointManager, CorruptCheckpointError, KeepLast, StepInfo, commit
from ckptmgr.commit import Attempt
from ckptmgr.manifest import Manifest
from ckptmgr.storage import PosixStore

BACKWARDS = [10, 3, 7]


@pytest.fixture
def manager(tmp_path) -> CheckpointManager:
    return CheckpointManager(tmp_path, backend=PointingBackend())


def theirs(folder: Path, order: list[int]) -> None:
    """Steps of another tool, whose hint tells this order."""
    for step in order:
        write_foreign(folder, f"ckpt-{step}", {"w": np.full(2, step)})
    (folder / "latest").write_text("".join(f"ckpt-{step}\n" for step in order))


def numbers(infos: list[StepInfo]) -> list[int]:
    return [info.step for info in infos]


def adopted_by_one_who_stops(
    manager: CheckpointManager, monkeypatch: pytest.MonkeyPatch, where: object, name: str, n: int
) -> None:
    """An adoption in which the n-th call of a method raises, before it has done anything."""
    original, calls = getattr(where, name), []

    def stops(*given, **more):
        calls.append(given)
        if len(calls) == n:
            raise OSError("stopped")
        return original(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(where, name, stops)
        with pytest.raises(OSError, match="stopped"):
            manager.adopt()


def test_all_are_adopted_in_their_order_with_sequences_up_to_zero(manager, tmp_path):
    theirs(tmp_path, [1, 3, 2])

    adopted = manager.adopt()

    assert numbers(adopted) == [1, 3, 2]
    assert [info.sequence for info in adopted] == [-2, -1, 0]
    assert manager.steps() == adopted
    assert len({info.run for info in adopted}) == 1


@pytest.mark.parametrize("own", [[], [8], [8, 1]])
def test_an_order_that_runs_against_the_numbers_is_kept(manager, tmp_path, own):
    theirs(tmp_path, BACKWARDS)
    for step in own:
        manager.save(step, state(step))
    assert numbers(manager.steps()) == [10, 3, 7, *own]

    manager.adopt()

    assert numbers(manager.steps()) == [10, 3, 7, *own]


@pytest.mark.parametrize(("own", "kept"), [([], [3, 7]), ([8], [7, 8])])
def test_retention_keeps_the_newest_of_all(tmp_path, own, kept):
    theirs(tmp_path, BACKWARDS)
    manager = CheckpointManager(tmp_path, backend=PointingBackend(), retention=KeepLast(2))
    for step in own:
        manager.save(step, state(step))

    adopted = manager.adopt()

    assert numbers(adopted) == [10, 3, 7]
    assert numbers(manager.steps()) == kept


def test_those_that_are_left_are_listed_below_all_that_are_committed(manager, tmp_path):
    theirs(tmp_path, BACKWARDS)
    manager.save(8, state(8))

    manager.adopt(7)

    assert [(info.step, info.sequence, info.is_foreign) for info in manager.steps()] == [
        (10, -2, True),
        (3, -1, True),
        (7, 0, False),
        (8, 1, False),
    ]


def test_adopting_one_by_one_newest_first_keeps_the_order_at_every_moment(manager, tmp_path):
    theirs(tmp_path, BACKWARDS)

    for step in (7, 3, 10):
        manager.adopt(step)

        assert numbers(manager.steps()) == [10, 3, 7]
    assert numbers([manager.save(0, {}), *manager.steps()]) == [0, 10, 3, 7, 0]


@pytest.mark.parametrize(("step", "newer"), [(3, "7"), (10, "7, 3")])
def test_an_older_one_is_refused_and_the_newer_ones_are_named(manager, tmp_path, step, newer):
    theirs(tmp_path, BACKWARDS)
    manager.save(8, state(8))

    with pytest.raises(ValueError, match=rf"step {step} would become newer .* \({newer}\): adopt these first"):
        manager.adopt(step)

    assert [(info.step, info.is_foreign) for info in manager.steps()] == [(10, True), (3, True), (7, True), (8, False)]
    assert not (tmp_path / f"step-{step:08}").exists()


def test_the_order_is_kept_at_every_deletion(manager, tmp_path, monkeypatch):
    theirs(tmp_path, BACKWARDS)
    manager.save(8, state(8))
    delete, seen = PosixStore.delete, []
    other = CheckpointManager(tmp_path, backend=PointingBackend())
    monkeypatch.setattr(PosixStore, "delete", lambda self, keys: (seen.append(numbers(other.steps())), delete(self, keys)))

    manager.adopt()

    assert seen == [[10, 3, 7, 8]] * 6


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(("where", "name"), [(Attempt, "commit"), (PosixStore, "put")])
def test_an_adoption_that_stops_before_a_commit_keeps_the_order_and_so_does_the_next(
    manager, tmp_path, monkeypatch, where, name, n
):
    theirs(tmp_path, BACKWARDS)
    manager.save(8, state(8))

    adopted_by_one_who_stops(manager, monkeypatch, where, name, n)

    assert numbers(manager.steps()) == [10, 3, 7, 8]
    manager.adopt()
    assert [(info.step, info.is_foreign) for info in manager.steps()] == [(10, False), (3, False), (7, False), (8, False)]


@pytest.mark.parametrize("n", range(1, 7))
def test_an_adoption_that_stops_at_a_deletion_keeps_the_order_and_so_does_the_next(manager, tmp_path, monkeypatch, n):
    theirs(tmp_path, BACKWARDS)
    manager.save(8, state(8))

    adopted_by_one_who_stops(manager, monkeypatch, PosixStore, "delete", n)

    assert numbers(manager.steps()) == [10, 3, 7, 8]
    manager.adopt()
    assert [(info.step, info.is_foreign) for info in manager.steps()] == [(10, False), (3, False), (7, False), (8, False)]
    assert not [*tmp_path.glob("ckpt-*")]


def test_adopting_again_changes_nothing(manager, tmp_path):
    theirs(tmp_path, BACKWARDS)
    manager.save(8, state(8))
    manager.adopt()
    before = manager.steps()

    assert manager.adopt() == []
    assert numbers(manager.adopt(10)) == [10]
    assert manager.steps() == before


def test_what_comes_after_an_adoption_is_adopted_as_the_oldest_where_it_was_listed(manager, tmp_path):
    theirs(tmp_path, BACKWARDS)
    manager.adopt()
    theirs(tmp_path, [5, 4])
    assert numbers(manager.steps()) == [5, 4, 10, 3, 7]

    manager.adopt()

    assert [(info.step, info.sequence) for info in manager.steps()] == [(5, -4), (4, -3), (10, -2), (3, -1), (7, 0)]


def test_adopted_steps_stay_older_than_what_was_saved_before(manager, tmp_path):
    theirs(tmp_path, BACKWARDS)
    manager.adopt(7)
    manager.save(4, state(4))
    manager.save(0, state(0))

    manager.adopt()

    assert numbers(manager.steps()) == [10, 3, 7, 4, 0]
    assert manager.save(5, {}).sequence == 3


def test_a_save_has_a_sequence_of_at_least_1_when_the_newest_adopted_steps_are_gone(manager, tmp_path):
    theirs(tmp_path, BACKWARDS)
    manager.adopt()
    manager.delete(7)
    manager.delete(3)

    assert manager.save(8, {}).sequence == 1
    assert [(info.step, info.sequence) for info in manager.steps()] == [(10, -2), (8, 1)]


def test_an_adopted_step_has_a_sequence_that_no_save_has_when_the_first_saves_are_gone(manager, tmp_path):
    for step in (1, 2, 3):
        manager.save(step, state(step))
    manager.delete(1)
    manager.delete(2)
    theirs(tmp_path, [7])

    assert [info.sequence for info in manager.adopt()] == [0]


def test_adopted_steps_are_older_than_a_save_of_the_lowest_sequence_there_is(manager, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(commit, "largest_sequence", lambda root, naming, **_: -1)
        manager.save(8, {})
    theirs(tmp_path, [9])

    manager.adopt()

    assert [(info.step, info.sequence) for info in manager.steps()] == [(9, -1), (8, 0)]


@pytest.mark.parametrize("sequence", [-1, -(2**63) + 1, 0, 2**63 - 1])
@pytest.mark.parametrize("extra", [{}, {"adopted": "ckpt-5"}], ids=["own", "adopted"])
def test_a_manifest_may_have_any_sequence_of_its_size(manager, sequence, extra):
    manager.save(1, {})
    manifest = replace(manager._steps.find_own(1).manifest, sequence=sequence, extra=extra)

    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("sequence", [-(2**63), 2**63, True, -1.0, "-1", None])
def test_a_sequence_that_is_no_such_integer_is_refused(manager, sequence):
    manager.save(1, {})
    value = replace(manager._steps.find_own(1).manifest, sequence=sequence).to_json()

    with pytest.raises(ValueError, match="as 'sequence' of the manifest"):
        Manifest.from_json(value)


def test_no_sequence_below_the_smallest_is_given(manager, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(commit, "largest_sequence", lambda root, naming, **_: -(2**63))
        manager.save(8, {})
    theirs(tmp_path, [9])

    with pytest.raises(CorruptCheckpointError, match="as 'sequence' of the manifest"):
        manager.adopt(9)

    assert [(info.step, info.is_foreign) for info in manager.steps()] == [(9, True), (8, False)]
