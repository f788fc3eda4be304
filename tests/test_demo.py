"""The demo: its training computes the same numbers however it is cut up, and the whole of it ends bit for bit the same."""

import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptmgr.cli import digits
from ckptmgr.cli.demo import compared, digest, images

COMMAND = Path(sys.executable).with_name("ckptmgr")


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    return images()


def test_training_learns_the_digits(data: dict[str, np.ndarray]) -> None:
    state = trained(data, 200)

    assert digits.validate(state, data)["val_accuracy"] > 0.85
    assert state["losses"][-20:].mean() < state["losses"][:20].mean() / 5


def test_training_from_a_copy_of_the_state_ends_with_the_same_bytes(data: dict[str, np.ndarray]) -> None:
    whole = trained(data, 60)
    half = trained(data, 60, until=30)

    resumed = trained(data, 60, begun=(30, copy.deepcopy(half)))

    parts = compared(whole, resumed)
    assert [part for part, (first, second) in parts.items() if first != second] == []
    assert {"weights", "adam", "rng", "order", "losses"} <= set(parts)


def test_training_resumes_from_disk_in_the_middle_of_an_epoch(data: dict[str, np.ndarray], tmp_path: Path) -> None:
    def stop(event: str, step: int) -> None:
        if (event, step) == ("saved", 40):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        digits.train(str(tmp_path), data, 60, stop)
    starts: list[int] = []
    digits.train(str(tmp_path), data, 60, lambda event, step: starts.append(step) if event == "start" else None)

    with digits.CheckpointManager(tmp_path) as manager:
        state = manager.restore().state
    assert starts == [40]
    assert digest(state["weights"]) == digest(trained(data, 60)["weights"])


def test_one_flipped_bit_changes_the_digest(data: dict[str, np.ndarray]) -> None:
    state = digits.initial(1500, 1)
    other = copy.deepcopy(state)
    other["weights"]["w1"].view(np.uint8)[7, 9] ^= 1

    differs = [part for part, (first, second) in compared(state, other).items() if first != second]

    assert differs == ["weights"]


@pytest.mark.slow
def test_demo_survives_kills_and_proves_it_within_30_seconds(tmp_path: Path) -> None:
    begun = time.monotonic()

    done = subprocess.run(
        [COMMAND, "demo", "--json", "--keep", tmp_path / "runs"], capture_output=True, text=True, check=False, timeout=120
    )

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["identical"]
    assert sum(life["was_killed"] for life in found["lives"]) >= 6
    assert sum(life["claims"] > 0 for life in found["lives"]) >= 1
    assert sum(life["damaged"] for life in found["lives"]) == 0
    assert [info["step"] for info in found["plan"] if "newest" in info["reasons"]] == [1000]
    assert time.monotonic() - begun < 60  # on a machine that runs other tests beside it


def test_demo_leaves_a_folder_alone_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")

    done = subprocess.run([COMMAND, "demo", "--keep", tmp_path], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def trained(
    data: dict[str, np.ndarray], steps: int, *, begun: tuple[int, dict[str, Any]] | None = None, until: int | None = None
) -> dict[str, Any]:
    first, state = begun or (0, digits.initial(len(data["images"]) - digits.VALIDATION, steps))
    for step in range(first, until or steps):
        digits.advance(state, data, step)
        if (step + 1) % digits.SAVE_EVERY == 0:
            digits.validate(state, data)
    return state
