"""How a save went stands in its manifest, as far as it is known then; and what a manifest tells is taken where it is a number."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_manifest import MANIFEST

from ckptmgr import BackgroundSaver, CheckpointManager, KeepAll, SaveStats, TieredManager, convert, copy, migrate, save
from ckptmgr.manifest import STATS, Manifest
from ckptmgr.record import Record, decode, encode
from ckptmgr.timing import MOST_NBYTES, MOST_S, Timing

STATE = {"w": np.arange(1 << 16, dtype=np.float32), "n": 3}


def recorded(folder: Path, step: int = 1) -> Any:
    """What the manifest of a step has, read by nobody but json."""
    return json.loads((folder / f"step-{step:08d}" / "manifest.json").read_bytes())["manifest"].get(STATS)


def told(value: Any) -> SaveStats | None:
    """What a listing tells of a step whose manifest says this."""
    record = decode(encode(Record(manifest=replace(MANIFEST, extra={STATS: value}))), where="run", step=MANIFEST.step)
    assert record.manifest is not None
    assert record.manifest.extra == {STATS: value}  # as it was, for whoever changes the record
    return record.manifest.info(frozenset(), name="step", path="p").stats


# ---- what is recorded


def test_a_save_records_when_it_was_begun_and_when_its_files_were_durable(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        stats = manager.save(1, STATE).stats

    assert stats is not None
    assert stats.begun is not None
    assert stats.written is not None
    assert 0 <= stats.begun <= stats.written == stats.blocking
    assert (stats.blocked, stats.staged, stats.committed, stats.reused) == (None, None, None, 0)
    assert stats.nbytes == STATE["w"].nbytes  # type: ignore[attr-defined]


def test_what_save_returns_is_what_any_listing_tells(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path) as manager:
        info = manager.save(1, STATE)

    assert CheckpointManager(tmp_path).steps() == [info]
    assert recorded(tmp_path) == info.stats.to_json()  # type: ignore[union-attr]


def test_a_background_save_records_when_the_call_returned_and_the_copy_was_made(tmp_path: Path) -> None:
    ticks = itertools.count()
    with CheckpointManager(tmp_path) as manager, BackgroundSaver(manager, clock=lambda: float(next(ticks))) as saver:
        info = saver.save(1, STATE).result()

    stats = info.stats
    assert stats is not None
    assert None not in (stats.staged, stats.blocked, stats.begun, stats.written)
    assert stats.staged < stats.blocked < stats.written  # type: ignore[operator]
    assert stats.staged < stats.begun < stats.written  # type: ignore[operator]
    assert stats.nbytes == STATE["w"].nbytes  # type: ignore[attr-defined]
    assert recorded(tmp_path) == stats.to_json()


@pytest.mark.parametrize("url", ["{}/run", "memory://reused-{}"])
def test_an_incremental_save_records_what_it_did_not_write(url: str, tmp_path: Path) -> None:
    state = {"base": {"w": np.zeros(1 << 18)}, "head": {"w": np.zeros(1 << 18)}}
    with CheckpointManager(url.format(tmp_path), incremental=True) as manager:
        first = manager.save(1, state)
        state["head"]["w"][0] = 1
        second = manager.save(2, state)

    assert first.stats.reused == 0  # type: ignore[union-attr]
    assert (1 << 21) < second.stats.reused < (1 << 21) + 8192  # type: ignore[union-attr]
    assert second.stats.nbytes == 1 << 22  # type: ignore[union-attr]


def test_a_copy_keeps_what_the_save_took(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "near") as near, CheckpointManager(tmp_path / "far") as far:
        with TieredManager(near, far) as tiers:
            stats = tiers.save(1, STATE).stats
            tiers.wait()
        assert stats is not None
        assert [info.stats for info in far.steps()] == [stats]
    copy(tmp_path / "near", tmp_path / "copy")
    assert recorded(tmp_path / "copy") == recorded(tmp_path / "near")


def test_what_nobody_saved_here_has_no_such_numbers(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, STATE)
        save(tmp_path / "run" / "ckpt-0.safetensors", STATE)
        assert manager.steps()[0].stats is None
        assert manager.adopt()[0].stats is None
        convert(manager.open(1), tmp_path / "converted", step=1, to="tf_bundle")
    migrate(tmp_path / "run", tmp_path / "migrated", steps=1, to="tf_bundle")

    assert [recorded(tmp_path / name) for name in ("converted", "migrated")] == [None, None]


def test_a_pin_or_an_overwrite_leaves_no_older_numbers(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, retention=KeepAll()) as manager:
        manager.save(1, STATE)
        before = recorded(tmp_path)
        manager.pin(1, "paper")
        assert recorded(tmp_path) == before
        again = manager.save(1, {"w": np.zeros(2)}, overwrite=True)

    assert recorded(tmp_path) == again.stats.to_json() != before  # type: ignore[union-attr]


# ---- what is read


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        "soon",
        [],
        {},
        {"nbytes": 3},
        *({"written": forged} for forged in (-1e-9, "1", True, None, [], {}, MOST_S + 1, 10**400, -(10**400), 1e308)),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_forged_value_is_as_if_nothing_were_said(value: Any) -> None:
    assert told(value) is None


def test_of_several_values_those_that_are_numbers_are_taken() -> None:
    value = {"written": 2, "begun": "x", "blocked": -1, "staged": 1e300, "nbytes": -1, "reused": 1.5, "committed": 5, "more": []}

    assert told(value) == SaveStats(written=2.0)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(["nbytes", "reused", "blocked", "staged", "begun", "written", "committed"])


@given(value=values | st.dictionaries(keys, values))
def test_whatever_stands_there_the_numbers_are_finite_and_bounded(value: Any) -> None:
    stats = told(value)

    if stats is not None:
        times = (stats.blocked, stats.staged, stats.begun, stats.written, stats.blocking, stats.writing)
        assert all(seconds is None or 0 <= seconds <= MOST_S for seconds in times)
        assert 0 <= stats.nbytes <= MOST_NBYTES
        assert 0 <= stats.reused <= MOST_NBYTES
        assert (rate := stats.throughput(1 << 40)) is None or (math.isfinite(rate) and rate > 0)
        assert SaveStats.from_json(stats.to_json()) == SaveStats.from_json(json.loads(json.dumps(stats.to_json())))


def test_a_clock_gone_mad_is_not_recorded() -> None:
    timing = Timing(clock=iter([0.0, math.nan, -5.0, math.inf, 7.25]).__next__)
    for moment in ("blocked", "staged", "begun", "written"):
        timing.reached(moment)

    assert timing.stats.to_json() == {"nbytes": 0, "reused": 0, "written": 7.25}


def test_a_manifest_without_the_field_is_read_as_ever() -> None:
    assert STATS not in MANIFEST.to_json()
    assert MANIFEST.info(frozenset(), name="s", path="p").stats is None
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


# ---- what follows from it


def test_throughput_is_of_the_bytes_that_were_written_while_they_were() -> None:
    stats = SaveStats(reused=400, begun=1.0, written=3.0)

    assert stats.throughput(1_000) == 300.0
    assert stats.throughput(400) is None  # nothing was written
    assert replace(stats, begun=None).throughput(1_000) is None
    assert replace(stats, begun=3.0).throughput(1_000) is None
    assert replace(stats, begun=4.0).writing is None
    assert replace(stats, begun=0.0, written=5e-324).throughput(1_000) is None


def test_a_save_in_the_foreground_blocks_until_its_files_are_written_at_least() -> None:
    assert SaveStats(written=2.0).blocking == 2.0
    assert SaveStats(written=2.0, blocked=0.1).blocking == 0.1
