"""SIGKILL at the requests of a save, before the store sees one and before its answer comes: no committed step is harmed."""

from collections.abc import Iterator

import pytest
from debris import debris
from every_store import options, place
from services import Proxy
from store_workers import Worker, state, value_of

from ckptmgr import CheckpointManager

pytestmark = pytest.mark.cloud
LARGE = 18 << 20  # in two parts
OLD = {1: 1, 2: 2}
# What a process does, and every how many requests it is killed.
LIVES = [("s3", ("save", 3, 3), 1), ("s3", ("save", 3, 3, LARGE), 1), ("s3", ("save", 2, 3, 4_000, True), 3)]
LIVES += [("gcs", ("save", 3, 3), 3), ("azure", ("save", 3, 3), 3), ("azure", ("save", 2, 3, LARGE, True), 9)]


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[tuple[Worker, Proxy, CheckpointManager]]:
    """A process whose requests go through a proxy, the proxy, and a manager of the same run that goes straight to the store."""
    server, proxy = (request.getfixturevalue(f"{request.param}_{kind}") for kind in ("server", "proxy"))
    url, given = place(request.param, request)
    proxy.rules()
    with Worker(url, options(server, proxy.endpoint)) as worker:
        yield worker, proxy, CheckpointManager(url, storage_options=given)
    proxy.rules()


@pytest.mark.slow
@pytest.mark.parametrize(("run", "does", "stride"), LIVES, indirect=["run"], ids=str)
def test_any_request_may_be_the_last(run: tuple[Worker, Proxy, CheckpointManager], does: tuple, stride: int) -> None:
    worker, proxy, manager = run
    for step, value in OLD.items():
        manager.save(step, state(value))
    outcomes = []

    # After one request is before the next one, as far as the store can tell.
    while killed(worker, proxy, 1 + stride * len(outcomes), "after" if len(outcomes) % 2 else "before", does):
        outcomes.append(check(manager, *does[1:3]))
    count = len(proxy.requests())
    assert check(manager, *does[1:3])
    assert killed(worker, proxy, count, "after", does)
    outcomes.append(check(manager, *does[1:3]))

    assert not outcomes[0]
    assert outcomes[-1]
    assert count >= 12


def killed(worker: Worker, proxy: Proxy, nth: int, when: str, does: tuple) -> bool:
    """Whether a new process that does this was killed at its request of that number."""
    pid = worker.ask("fork", *does)
    proxy.rules({"do": "kill", "pid": pid, "nth": nth, "when": when})
    result = worker.ask("go")
    assert result in ("ok", None)
    return result is None


def check(manager: CheckpointManager, step: int, value: int) -> bool:
    """Older steps are whole, the new one is whole or absent, the next save works, a sweep cleans. Whether the new was there."""
    found = {info.step: value_of(manager.restore(info.step).state) for info in manager.steps()}
    assert found in (OLD, {**OLD, step: value})

    manager.save(1000, state(1000))
    manager.sweep(grace=0)

    assert [info.step for info in manager.steps()][-1] == 1000
    assert value_of(manager.restore().state) == 1000
    manager.delete(1000)
    assert {info.step for info in manager.steps()} == set(found)
    assert debris(manager.folder) == set()
    if found != OLD:
        manager.save(step, state(OLD[step]), overwrite=True) if step in OLD else manager.delete(step)
    return found != OLD
