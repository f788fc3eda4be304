"""Bytes that come from afar with another bit: they are found, fetched once more, and told if they are damaged for good."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from every_store import options, place
from services import Proxy, Service

import ckptmgr
from ckptmgr import Checkpoint, CheckpointManager, CorruptCheckpointError

pytestmark = pytest.mark.cloud
LARGE = np.random.default_rng(0).integers(0, 255, 9 << 20, np.uint8)  # more than one request
STATE = {"large": {"w": LARGE}, "small": {f"w{n}": np.full(50, n) for n in range(20)}, "other": {"w": LARGE[::-1].copy()}}


@pytest.fixture
def far(request: pytest.FixtureRequest) -> Iterator[tuple[CheckpointManager, Proxy]]:
    """A run with a step, through a proxy."""
    server: Service = request.getfixturevalue("s3_server")
    proxy: Proxy = request.getfixturevalue("s3_proxy")
    url, given = place("s3", request)
    CheckpointManager(url, storage_options=given).save(1, STATE)
    yield CheckpointManager(url, storage_options={**options(server, proxy.endpoint), "client": request.param}), proxy
    proxy.rules()


def is_same(found: dict) -> bool:
    return all(np.array_equal(found[group][name], array) for group, arrays in STATE.items() for name, array in arrays.items())


def flip(file: str, at: int, **rule: object) -> dict:
    return {"method": "GET", "path": file, "do": "corrupt", "bytes": at, **rule}


def fetched(proxy: Proxy, file: str) -> int:
    return sum(each["method"] == "GET" and file in each["target"] for each in proxy.requests())


@pytest.mark.parametrize("into", [False, True], ids=["new arrays", "into"])
@pytest.mark.parametrize("far", ["obstore", "fsspec"], indirect=True)
def test_a_flipped_bit_is_fetched_again_and_no_more_than_that(far: tuple[CheckpointManager, Proxy], into: bool) -> None:
    manager, proxy = far
    target = {group: {name: np.zeros_like(array) for name, array in arrays.items()} for group, arrays in STATE.items()}
    manager.restore(1)
    proxy.rules()
    manager.restore(1, into=target if into else None)
    usual = fetched(proxy, "safetensors")
    proxy.rules(flip("safetensors", 100_000, nth=1, times=1))

    found = manager.restore(1, into=target if into else None)

    assert is_same(found.state)
    assert found.report.skipped == ()
    assert [each["fault"] for each in proxy.requests()].count("corrupt") == 1
    assert usual < fetched(proxy, "safetensors") < 2 * usual


@pytest.mark.parametrize("far", ["obstore"], indirect=True)
@pytest.mark.parametrize("file", ["manifest", "tree"])
def test_a_flipped_bit_in_what_says_where_everything_lies_is_fetched_again(
    far: tuple[CheckpointManager, Proxy], file: str
) -> None:
    manager, proxy = far
    proxy.rules(flip(f"{file}.json", 50, times=1))

    assert is_same(manager.restore().state)

    assert [each["fault"] for each in proxy.requests()].count("corrupt") == 1


@pytest.mark.parametrize("far", ["obstore"], indirect=True)
def test_a_second_mismatch_is_an_error_that_names_file_and_tensor(far: tuple[CheckpointManager, Proxy]) -> None:
    manager, proxy = far
    proxy.rules(flip("safetensors", 100_000))

    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors") as caught:
        manager.restore(1)

    assert caught.value.file == "model.safetensors"
    assert caught.value.tensor in ("large/w", "other/w")
    proxy.rules()
    assert is_same(manager.restore(1).state)


@pytest.mark.parametrize("far", ["obstore"], indirect=True)
def test_a_verification_takes_a_flipped_bit_on_the_way_for_no_damage(far: tuple[CheckpointManager, Proxy]) -> None:
    manager, proxy = far
    proxy.rules(flip("safetensors", 100_000, times=1))

    assert manager.verify().ok

    proxy.rules(flip("safetensors", 100_000))
    assert {problem.tensor for _, problem in manager.verify().problems} & {"large/w", "other/w"}


@pytest.mark.parametrize("far", ["obstore"], indirect=True)
@pytest.mark.parametrize("move", ["convert", "diff", "export"])
def test_whatever_streams_a_step_takes_a_flipped_bit_on_the_way_for_no_damage(
    far: tuple[CheckpointManager, Proxy], move: str, tmp_path: Path
) -> None:
    manager, proxy = far
    ckptmgr.save(tmp_path / "a.safetensors", STATE)
    moves: dict[str, Callable[[Checkpoint], object]] = {
        "convert": lambda opened: ckptmgr.convert(opened, tmp_path / "b.safetensors"),
        "diff": lambda opened: ckptmgr.diff(opened, tmp_path / "a.safetensors", state_only=True),
        "export": lambda opened: ckptmgr.export(opened, tmp_path / "b.safetensors", to="hf", select="*"),
    }

    with manager.open(1) as opened:
        proxy.rules(flip("safetensors", 100_000, nth=1, times=1))
        moves[move](opened)
        assert [each["fault"] for each in proxy.requests()].count("corrupt") == 1
        proxy.rules(flip("safetensors", 100_000))
        with pytest.raises(CorruptCheckpointError, match=r"(large|other)/w"):
            moves[move](opened) if move == "diff" else ckptmgr.convert(opened, tmp_path / "c.safetensors")

    assert not (tmp_path / "c.safetensors").exists()
