"""A manager on every store: what it does on a local folder, it does there."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from every_store import REMOTE, WEAK, options, place
from runs import state

from ckptmgr import CheckpointError, CheckpointManager, KeepLast, StepExistsError

pytestmark = pytest.mark.cloud
PLACES = ["fsspec-memory", *REMOTE]


@pytest.fixture
def where(request: pytest.FixtureRequest, tmp_path: Path) -> dict:
    """The arguments of a manager of a new run."""
    if request.param == "fsspec-memory":
        return {"url": f"memory:/{tmp_path}/run"}
    url, options = place(request.param, request)
    return {"url": url, "storage_options": options}


def restored(manager: CheckpointManager, step: int | None = None) -> int:
    found = manager.restore(step).state
    assert (found["model"]["w"] == found["epoch"]).all()
    return found["epoch"]


@pytest.mark.parametrize("where", PLACES, indirect=True)
def test_a_life_of_a_run(where: dict) -> None:
    manager = CheckpointManager(**where, retention=KeepLast(2))
    reader = CheckpointManager(**where)
    assert reader.latest() is None

    for step in (1, 2, 3):
        manager.save(step, state(step), metrics={"loss": 1 / step}, assets={"notes.txt": b"hello"})
        assert reader.latest().step == step

    assert [info.step for info in reader.steps()] == [2, 3]
    assert restored(reader) == 3
    reader.verify(3)
    with pytest.raises(StepExistsError):
        manager.save(3, state(4))
    manager.save(3, state(4), overwrite=True)
    assert restored(reader, 3) == 4
    manager.pin(2, "paper")
    manager.save(4, state(5))
    assert [info.step for info in reader.steps()] == [2, 3, 4]
    manager.unpin(2, "paper")
    manager.delete(4)
    assert restored(reader) == 4
    assert manager.sweep(grace=0).foreign == ()
    assert [info.step for info in reader.steps()] == [2, 3]


@pytest.mark.parametrize("where", PLACES, indirect=True)
def test_two_writers_race_on_a_step_and_one_wins(where: dict) -> None:
    managers = [CheckpointManager(**where) for _ in range(2)]

    def save(number: int, step: int) -> bool:
        try:
            managers[number].save(step, state(10 * step + number))
        except CheckpointError:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        for step in range(3):
            won = list(threads.map(save, range(2), [step] * 2))

            assert sorted(won) == [False, True]
            assert restored(managers[0], step) == 10 * step + won.index(True)


@pytest.mark.parametrize("where", ["s3", "gcs", "azure"], indirect=True)
def test_large_arrays_go_in_parts_and_come_back(where: dict) -> None:
    manager = CheckpointManager(**where)
    model = {"large": np.random.default_rng(0).integers(0, 255, 20 << 20, np.uint8), "small": np.arange(3.0)}

    manager.save(1, model)
    into = {name: np.empty_like(array) for name, array in model.items()}
    manager.restore(into=into)

    assert all((into[name] == model[name]).all() for name in model)
    with manager.open(1) as checkpoint:
        assert (checkpoint.read("small") == model["small"]).all()
    manager.verify(1)


@pytest.mark.parametrize("where", WEAK, indirect=True)
def test_a_store_that_ignores_conditions_takes_one_writer_and_says_so(where: dict) -> None:
    manager = CheckpointManager(**where)

    with pytest.warns(UserWarning, match="does not honour conditional writes"):
        manager.save(1, state(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CheckpointManager(**where).save(2, state(2))
        manager.delete(1)

    assert restored(manager) == 2
    assert [info.step for info in manager.steps()] == [2]
    assert manager.folder.store.is_weak


@pytest.mark.parametrize("fault", ["lose", "reset"])
@pytest.mark.parametrize("nth", [1, 2], ids=["claim", "commit"])
@pytest.mark.parametrize("name", ["s3", "gcs", "azure", "s3-fsspec", "gcs-fsspec", "azure-fsspec"])
def test_an_answer_that_is_lost_changes_nothing(name: str, nth: int, fault: str, request: pytest.FixtureRequest) -> None:
    cloud, _, client = name.partition("-")
    server = request.getfixturevalue(f"{cloud}_server")
    url, given = place(name, request)
    proxy = request.getfixturevalue(f"{cloud}_proxy")
    manager = CheckpointManager(url, storage_options={**options(server, proxy.endpoint), "client": client or "obstore"})
    manager.save(1, state(1))
    of_records = {"path": "00000002.*manifest", "nth": nth, "do": fault}
    proxy.rules(*({"method": method, **of_records} for method in ("PUT", "POST")))

    manager.save(2, state(2))

    assert [each["fault"] for each in proxy.requests()].count(fault) == 1
    reader = CheckpointManager(url, storage_options=given)
    assert [info.step for info in reader.steps()] == [1, 2]
    assert restored(reader) == 2


@pytest.mark.parametrize(
    ("where", "key"),
    [("gcs", "/model.bin"), ("gcs", "step-00000001//x"), ("gcs", "odd\n/x"), ("azure", "/x")],
    indirect=["where"],
)
def test_an_object_that_obstore_cannot_ask_for_keeps_nobody_from_the_run(where: dict, key: str) -> None:
    manager = CheckpointManager(**where, retention=KeepLast(2))
    manager.save(1, state(1))
    CheckpointManager(**where).folder.store._bucket.helper().send(f"{manager.folder.store._prefix}{key}", b"somebody's", None)

    for step in (2, 3):
        manager.save(step, state(step))
    reader = CheckpointManager(**where)

    assert [info.step for info in reader.steps()] == [2, 3]
    assert restored(reader) == 3
    reader.delete(2)
    assert reader.sweep(grace=0).foreign == ()
    assert [info.step for info in CheckpointManager(**where).steps()] == [3]
