"""Random histories of incremental saves and of all that removes steps: what is committed reads, and nothing else stays."""

import contextlib
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from incrementals import manager_of, small_groups
from stores import MemoryStore

from ckptmgr import CheckpointManager, KeepAll, KeepLast
from ckptmgr.deleting import files_below
from ckptmgr.errors import StepExistsError
from ckptmgr.storage import PosixStore

steps = st.integers(1, 5)
# Few, so that files are often equal: sizes and values by key.
parts = st.sampled_from(
    [
        {"base": (9, 0), "b c": (9, 1)},
        {"base": (9, 0), "b c": (9, 2)},
        {"base": (9, 0), "f*[": (9, 1)},
        {"base": (9, 1), "b c": (0, 1)},
        {},
    ]
)
operations = st.one_of(
    st.tuples(st.sampled_from(["save", "save", "overwrite", "fail"]), steps, parts),
    st.tuples(st.just("save"), steps, parts),
    st.tuples(st.sampled_from(["delete", "materialize", "damage", "lose"]), steps),
    st.tuples(st.sampled_from(["sweep", "collect", "restart"])),
)


class History:
    """A run, and what its steps must read as."""

    def __init__(self, store: Any, backend: str) -> None:
        self.store, self.backend = store, backend
        self.manager = manager_of(store, backend=backend)
        self.states: dict[int, dict] = {}

    def state(self, given: dict[str, tuple[int, int]]) -> dict:
        return {"n": len(given), **{key: {"w": np.full(size, value)} for key, (size, value) in given.items()}}

    def save(self, step: int, given: dict, *, overwrite: bool = False) -> None:
        with contextlib.suppress(StepExistsError):
            self.manager.save(step, self.state(given), overwrite=overwrite)
            self.states[step] = self.state(given)

    def overwrite(self, step: int, given: dict) -> None:
        self.save(step, given, overwrite=True)

    def fail(self, step: int, given: dict) -> None:
        with mock.patch("ckptmgr.commit.largest_sequence", side_effect=OSError), contextlib.suppress(OSError, StepExistsError):
            self.manager.save(step, self.state(given), overwrite=True)

    def delete(self, step: int) -> None:
        if self.states.pop(step, None):
            self.manager.delete(step)

    def materialize(self, step: int) -> None:
        if step in self.states:
            self.manager.materialize(step)
            assert not any(entry.origin for entry in self.manager.open(step).files)

    def damage(self, step: int) -> None:
        """Its record cannot be read any more, and is deleted."""
        if step in self.states:
            self.manager.folder.write(f"step-{step:08d}/manifest.json", b"damaged")
            self.delete(step)

    def lose(self, step: int) -> None:
        if self.states.pop(step, None):
            self.manager.folder.delete([f"step-{step:08d}/manifest.json"])

    def sweep(self) -> None:
        self.manager.sweep(grace=0)

    def collect(self) -> None:
        self.manager.retention = KeepLast(2)
        self.manager.collect()
        self.manager.retention = KeepAll()
        self.states = {info.step: self.states[info.step] for info in self.manager.steps()}

    def restart(self) -> None:
        self.manager = manager_of(self.store, backend=self.backend)

    def check(self) -> None:
        assert {info.step for info in self.manager.steps()} == self.states.keys()
        for step, expected in self.states.items():
            np.testing.assert_equal(self.manager.restore(step).state, expected)

    def attempts(self) -> set[str]:
        """The folders that have files of steps."""
        return {key.rpartition("/")[0] for key in files_below(self.manager.folder) if key.count("/") == 2}


def needed(manager: CheckpointManager) -> set[str]:
    known = [each.manifest for each in manager._steps.steps().committed]
    own = {f"step-{each.step:08d}/a-{each.attempt}" for each in known}
    return own | {entry.origin.path.rpartition("/")[0] for each in known for entry in each.files if entry.origin}


@pytest.mark.parametrize(
    "where",
    [
        "references",
        "no conditional remove",
        pytest.param("links", marks=pytest.mark.slow),
        pytest.param("few links", marks=pytest.mark.slow),
    ],
)
@given(history=st.lists(operations, max_size=25), backend=st.sampled_from(["safetensors", "tf_bundle", "hdf5"]))
@settings(max_examples=60, deadline=None)
def test_every_step_reads_and_nothing_else_stays(
    tmp_path_factory: pytest.TempPathFactory, where: str, history: list, backend: str
) -> None:
    on_disk = "links" in where
    store = PosixStore(tmp_path_factory.mktemp("run")) if on_disk else MemoryStore(has_remove=where == "references")
    with small_groups(), few_links() if where == "few links" else contextlib.nullcontext():
        run = History(store, backend)
        for operation, *arguments in history:
            getattr(run, operation)(*arguments)
            run.check()

        for _ in range(2):  # a hold falls one round after its holder
            run.manager.sweep(grace=0)
        run.check()
        assert run.attempts() == needed(run.manager)
        assert run.manager.verify().ok
        for step in [*run.states]:
            run.delete(step)
        run.sweep()
        assert run.attempts() == set()


@contextlib.contextmanager
def few_links() -> Any:
    """A disk on which every second link is refused."""
    link, number = PosixStore.link, iter(range(1 << 30))
    with mock.patch.object(PosixStore, "link", lambda self, source, key: next(number) % 2 == 0 and link(self, source, key)):
        yield
