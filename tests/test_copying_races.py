"""Copies of one step, sweeps, deletes and lost answers in every kind of order: a copy is whole or absent, and none comes back."""

import contextlib
import random
from collections.abc import Callable
from unittest import mock

import interleaving
import pytest
from copies import check_aftermath, files_of
from interleaving import Actor, Stage, Violation, manifests
from saves import NAMING, content, save
from stores import MemoryStore

from ckptmgr import commit, copying
from ckptmgr.errors import CommitUnknownError, SaveError, StepExistsError
from ckptmgr.finding import Run
from ckptmgr.storage import Folder
from ckptmgr.sweep import sweep

ROUNDS = 250


def original() -> MemoryStore:
    store = MemoryStore()
    for step in (1, 2):
        save(Folder(store), step, nfiles=2)
    return store


def copier(source: MemoryStore) -> Callable[[Actor], None]:
    def program(actor: Actor) -> None:
        run = Run(Folder(source), NAMING)
        with contextlib.suppress(CommitUnknownError, SaveError, StepExistsError, TimeoutError):
            done = copying.copy_step(run, run.find_own(2), Run(actor.root, NAMING), verify="fast")
            if done.info.attempt not in actor.stage.committed:
                raise Violation(f"I2: {actor.name} was told that {done.info.attempt} is committed")

    return program


def sweeper(actor: Actor) -> None:
    sweep(actor.root, NAMING, grace_s=0)


def deleter(actor: Actor) -> None:
    commit.delete(actor.root, NAMING.format(2), 2)


def race(seed: int) -> None:
    chance = random.Random(seed)
    source, target = original(), MemoryStore(has_remove=chance.random() < 0.7)
    target.workers = 1  # an actor is one thread
    wanted = manifests(source)[2].attempt

    def check(store: MemoryStore) -> None:
        for step in manifests(store):
            if files_of(store, step) != {name: content(wanted, name) for name in ("file-0", "file-1")}:
                raise Violation(f"I1: {files_of(store, step)}")

    stage = Stage(target, chance.choice([0, 1, 2]), chance)
    programs = [("copy", copier(source))] * chance.choice([2, 3]) + [("sweep", sweeper)] * chance.choice([1, 2])
    programs += [("delete", deleter)] * chance.choice([0, 1])
    for number, (why, program) in enumerate(programs):
        stage.enter(f"{why} {number}", why, program)
    with mock.patch.multiple(interleaving, check_files=check, check_aftermath=lambda store: None):
        try:
            stage.run(chance.choice([20, 60, 400]))
        except Violation as error:
            raise Violation("\n".join([str(error), f"seed {seed}", *stage.trace])) from error
    check_aftermath(target)
    copying.copy_step(Run(Folder(source), NAMING), Run(Folder(source), NAMING).find_own(2), Run(Folder(target), NAMING))
    check(target)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("part", range(4))
def test_copies_in_any_order_keep_the_laws(part: int) -> None:
    for seed in range(part, ROUNDS, 4):
        race(seed)
