"""How many HTTP requests each operation takes, as docs/cloud.md tells: counted by a proxy in front of real servers."""

import re
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from every_store import CLOUDS, options
from runs import state
from services import Proxy

from ckptmgr import CheckpointManager, KeepLast, TieredManager
from ckptmgr.manifest import Manifest, new_attempt
from ckptmgr.naming import StepNaming
from ckptmgr.record import Record, encode
from ckptmgr.storage import weak

pytestmark = pytest.mark.cloud
DOCS = Path(__file__).parent.parent / "docs" / "cloud.md"
STEPS = 5  # that a run has where the table says n
STORES = ["s3", "gcs", "azure", "s3-fsspec", "gcs-fsspec", "azure-fsspec"]  # the columns
CASES: dict[str, Callable[["Case"], Any]] = {}


class Case:
    """A run of `STEPS` steps behind a proxy."""

    def __init__(self, name: str, request: pytest.FixtureRequest) -> None:
        cloud, _, client = name.partition("-")
        self.proxy: Proxy = request.getfixturevalue(f"{cloud}_proxy")
        server = request.getfixturevalue(f"{cloud}_server")
        self.url = f"{CLOUDS[cloud][1]}/{secrets.token_hex(4)}/run"
        self.options = {**options(server, self.proxy.endpoint), "client": client or "obstore"}
        self.writer = self.manager()

    def filled(self) -> "Case":
        for step in range(1, STEPS + 1):
            self.writer.save(step, state(step))
        return self

    def manager(self, **given: Any) -> CheckpointManager:
        """As a new process has it, but that conditions were tried."""
        manager = CheckpointManager(self.url, storage_options=self.options, **given)
        weak.honours(manager.folder.store, manager.folder.store.url)  # type: ignore[arg-type]
        self.proxy.rules()
        return manager

    def count(self, call: Callable[[], Any]) -> int:
        self.proxy.rules()
        call()
        return len(self.proxy.requests())


def case(row: str) -> Callable[[Callable[[Case], int]], None]:
    return lambda counted: CASES.__setitem__(row, counted)


def of_new_process(row: str, call: Callable[[CheckpointManager], Any], **given: Any) -> None:
    CASES[row] = lambda run: run.filled().count(lambda: call(manager)) if (manager := run.manager(**given)) else 0


def opened(manager: CheckpointManager) -> None:
    with manager.open(3) as checkpoint:
        checkpoint.read("model/w")


of_new_process("`save`, first of a process", lambda manager: manager.save(9, state(9)))
of_new_process("`latest`, `steps` or `best`, first of a process", lambda manager: manager.latest())
of_new_process("`restore()` of the newest, first of a process", lambda manager: manager.restore())
of_new_process("`restore(step)`", lambda manager: manager.restore(3))
of_new_process("`open(step)` and one tensor", opened)
of_new_process("`delete(step)`", lambda manager: manager.delete(3))
of_new_process("`collect` of 2 steps, first of a process", lambda manager: manager.collect(), retention=KeepLast(STEPS - 2))
of_new_process("`pin` or `unpin`", lambda manager: manager.pin(3, "paper"))
of_new_process("`verify(step)`", lambda manager: manager.verify(3))
of_new_process("`sweep` with nothing to do, first of a process", lambda manager: manager.sweep())


@case("`save`, next")
def _(run: Case) -> int:
    return run.count(lambda: run.writer.save(9, state(9))) if run.filled() else 0


@case("`save(overwrite=True)`, next")
def _(run: Case) -> int:
    return run.count(lambda: run.writer.save(3, state(9), overwrite=True)) if run.filled() else 0


@case("`save` and retention that removes a step, next")
def _(run: Case) -> int:
    run.writer = run.manager(retention=KeepLast(2))
    run.filled()
    return run.count(lambda: run.writer.save(9, state(9)))


@case("`latest`, `steps` or `best`, again")
def _(run: Case) -> int:
    return run.count(run.writer.latest) if run.filled() and run.writer.latest() else 0


@case("the same, one step saved by others")
def _(run: Case) -> int:
    run.filled().writer.latest()
    run.manager().save(9, state(9))
    return run.count(run.writer.latest)


def counted_copy(run: Case, near: Path, **given: Any) -> int:
    """Of a step that is saved in a local tier, when one was copied before."""
    with TieredManager(CheckpointManager(near), run.manager(**given)) as tiers:
        for step in (6, 7, 8):
            tiers.save(step, state(step))
            tiers.wait()
        return run.count(lambda: (tiers.save(9, state(9)), tiers.wait()))


@case("a `TieredManager`'s copy of a step, next")
def _(run: Case) -> int:
    with TemporaryDirectory() as near:
        return counted_copy(run.filled(), Path(near))


@case("the same, and retention that removes a step")
def _(run: Case) -> int:
    with TemporaryDirectory() as near:
        return counted_copy(run.filled(), Path(near), retention=KeepLast(2))


def table() -> dict[str, list[range]]:
    """What the page says, by rows: for each of `STORES` how many it may be."""
    found = {}
    for line in DOCS.read_text().splitlines():
        row, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if row in CASES and len(cells) == len(STORES):
            found[row] = [_value(cell) for cell in cells]
    return found


def _value(cell: str) -> range:
    said = re.fullmatch(r"(≤ )?(\d+)( \+ n)?", cell)
    assert said, cell
    most = int(said[2]) + (STEPS if said[3] else 0)
    return range(1 if said[1] else most, most + 1)


def test_page_tells_of_every_operation() -> None:
    assert table().keys() == CASES.keys()


@pytest.mark.parametrize("name", STORES)
@pytest.mark.parametrize("row", CASES)
def test_requests_are_as_many_as_the_page_says(row: str, name: str, request: pytest.FixtureRequest) -> None:
    run = Case(name, request)

    counted = CASES[row](run)

    assert counted in table()[row][STORES.index(name)], [
        (each["method"], each["target"], each["status"]) for each in run.proxy.requests()
    ]


def test_first_look_at_a_long_run_is_a_listing_and_its_records_and_the_next_a_listing(request: pytest.FixtureRequest) -> None:
    run, steps = Case("s3", request), 1_100
    root = run.writer.folder

    def put(step: int) -> None:
        made = Manifest(step, new_attempt(), step, "run", datetime(2026, 1, 1, tzinfo=UTC), "raw", 0, ())
        root.write(f"{StepNaming().format(step)}/manifest.json", encode(Record(manifest=made)))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(put, range(steps)))
    manager = run.manager()

    assert run.count(manager.latest) == 2 + steps
    assert run.count(manager.latest) == 2
    assert manager.latest().step == steps - 1  # type: ignore[union-attr]


def test_conditions_are_tried_by_five_requests_once(request: pytest.FixtureRequest) -> None:
    run = Case("s3", request)
    manager, again = (CheckpointManager(f"{run.url}-new", storage_options=run.options) for _ in range(2))

    assert run.count(lambda: manager.save(1, state(1))) == 6 + 5
    assert run.count(lambda: again.save(2, state(2))) == 6 + 1
