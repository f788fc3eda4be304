"""Two processes at one run, on every store: what one has saved the other sees at once, and of two savers of a step one wins."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from debris import debris
from every_store import REMOTE, WEAK, place
from store_workers import Worker

from ckptmgr import CheckpointManager

LOST = {"StepExistsError", "SaveError"}
FAR = [pytest.param(name, marks=pytest.mark.cloud) for name in [*REMOTE, *WEAK]]


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The arguments of a manager of a new run."""
    if request.param == "posix":
        return {"url": str(tmp_path / "run")}
    url, given = place(request.param, request)
    return {"url": url, "storage_options": given}


@pytest.fixture
def two(run: dict[str, Any]) -> Iterator[list[Worker]]:
    """Two other processes, each with a manager of that run."""
    with ExitStack() as stack:
        yield [stack.enter_context(Worker(**run)) for _ in range(2)]


@pytest.mark.parametrize("run", ["posix", *FAR], indirect=True)
def test_what_one_process_did_the_next_call_of_another_sees(two: list[Worker]) -> None:
    writer, reader = two
    assert reader.ask("steps") == []
    assert reader.ask("restore") == "StepNotFoundError"

    for step in (1, 2, 3):
        assert writer.ask("save", step, 10 + step) == "ok"
        assert reader.ask("steps") == [*range(1, step + 1)]
        assert reader.ask("restore") == 10 + step
    assert writer.ask("save", 2, 20, 4_000, True) == "ok"
    assert reader.ask("restore") == 20
    writer.ask("delete", 2)
    assert reader.ask("steps") == [1, 3]
    writer.ask("collect", 1)
    assert reader.ask("steps") == [3]
    assert reader.ask("save", 3, 4) == "StepExistsError"
    assert reader.ask("save", 4, 4) == "ok"
    assert writer.ask("restore") == 4


@pytest.mark.slow
@pytest.mark.parametrize(("run", "races"), [("posix", 30), ("s3", 100), ("gcs", 10), ("azure", 10)], indirect=["run"])
@pytest.mark.cloud
def test_of_two_savers_of_a_step_exactly_one_wins_and_the_other_knows(run: dict[str, Any], two: list[Worker], races: int) -> None:
    winners: Counter[int] = Counter()
    reader = CheckpointManager(**run)

    for step in range(races):
        for number, worker in enumerate(two):  # the one that is told first is not always ahead
            worker.begin("save", step % 10, 2 * step + number, 4_000 << 4 * ((step + number) % 3))
        told = [worker.answer() for worker in two]

        assert sorted(each == "ok" for each in told) == [False, True], told
        winner = told.index("ok")
        assert told[1 - winner] in LOST
        winners[winner] += 1
        assert two[step % 2].ask("restore", step % 10) == 2 * step + winner
        if step % 10 == 9:
            for each in range(10):
                reader.delete(each)

    assert min(winners[0], winners[1]) >= races // 10, "no race"
    reader.sweep(grace=0)
    assert debris(reader.folder) == set()
