"""Retention as it is carried out: random histories of real runs, where the plan is exactly what happens."""

import contextlib
import math
import os
import random
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from ckptmgr import CheckpointManager, KeepBest, KeepBytes, KeepEvery, KeepLast, Retention, StepExistsError, StepNotFoundError

POLICIES = st.lists(
    st.sampled_from([KeepLast(1), KeepLast(3), KeepEvery(4), KeepBest("loss", n=2), KeepBytes(20_000)]), min_size=1, max_size=3
)
EVENTS = st.one_of(
    st.tuples(st.just("save"), st.integers(0, 12), st.sampled_from([0.1, 0.2, 0.2, math.nan, math.inf, None])),
    st.tuples(st.just("overwrite"), st.integers(0, 12), st.just(0.15)),
    st.tuples(st.just("delete"), st.integers(0, 12), st.none()),
    st.tuples(st.just("pin"), st.integers(0, 12), st.none()),
    st.tuples(st.just("restart"), st.just(0), st.none()),
    st.tuples(st.just("new run"), st.just(0), st.none()),
    st.tuples(st.just("scramble times"), st.integers(0, 99), st.none()),
)


def joined(policies: list[Retention]) -> Retention:
    first, *rest = policies
    for policy in rest:
        first = first | policy
    return first


def scramble_times(root: Path, seed: int) -> None:
    rng = random.Random(seed)
    for path in root.rglob("*"):
        os.utime(path, (rng.random() * 1e9,) * 2)


@settings(max_examples=80)
@given(POLICIES, st.lists(EVENTS, min_size=1, max_size=14))
def test_the_plan_is_what_happens_whatever_happened_before(policies, events):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        foreign = [root / "step-00000099" / "weights.bin", root / "checkpoint-3" / "model.safetensors", root / "step-x"]
        for path in foreign:
            path.parent.mkdir(exist_ok=True)
            path.write_text("not ours")
        manager = CheckpointManager(root)  # keeps all: retention is carried out at the end alone
        for kind, number, loss in events:
            metrics = {} if loss is None else {"loss": loss}
            with contextlib.suppress(StepExistsError, StepNotFoundError):
                if kind in ("save", "overwrite"):
                    manager.save(number, {"step": number}, metrics=metrics, overwrite=kind == "overwrite")
                elif kind == "delete":
                    manager.delete(number)
                elif kind == "pin":
                    manager.pin(number, "paper")
                elif kind == "scramble times":
                    scramble_times(root, number)
                else:
                    manager = CheckpointManager(root, run="another" if kind == "new run" else None)
        keeper = CheckpointManager(root, retention=joined(policies))
        before = [info for info in keeper.steps() if not info.is_foreign]
        planned = keeper.plan()

        done = keeper.collect()

        after = [info.step for info in keeper.steps() if not info.is_foreign]
        assert [info.step for info in done.kept] == [info.step for info in planned.kept] == after
        assert not before or before[-1].step in after
        assert {info.step for info in before if info.pins} <= set(after)
        assert all(path.read_text() == "not ours" for path in foreign)
        assert all(keeper.restore(step).state == {"step": step} for step in after)
        assert keeper.collect().dropped == []
