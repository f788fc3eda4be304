"""Runs migrated into other runs: what a step keeps, what is passed over, what is told. On threads; others have their own file."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from runs import files, state
from safetensors.numpy import save_file

import ckptmgr
from ckptmgr import CheckpointManager, MigrationError, StepNotFoundError, migrate


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Steps 3, 1 and 2, saved in this order."""
    with CheckpointManager(tmp_path / "run", run="r") as manager:
        for step in (3, 1, 2):
            manager.save(step, state(step), metrics={"loss": step / 2}, metadata={"at": step}, assets={"notes": b"%d" % step})
        manager.pin(1, "best")
    return tmp_path / "run"


def told(folder: Path) -> list[tuple]:
    """What must be the same afterwards, oldest save first."""
    return [
        (info.step, info.sequence, info.run, info.created, dict(info.metrics), dict(info.metadata), info.pins)
        for info in CheckpointManager(folder).steps()
    ]


def is_equal(folder: Path, step: int) -> bool:
    with CheckpointManager(folder).open(step) as opened:
        found = opened.load()
        return found["epoch"] == step and np.array_equal(found["model"]["w"], state(step)["model"]["w"])


def hugging_face(folder: Path, step: int) -> None:
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    save_file({"w": np.full(5, step, np.float32)}, place / "model.safetensors")
    (place / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (place / "optimizer.pt").write_bytes(b"not looked at")


@pytest.mark.parametrize("to", [None, "npz"])
def test_a_step_keeps_all_that_is_known_of_it(run: Path, tmp_path: Path, to: str | None) -> None:
    report = migrate(run, tmp_path / "new", to=to)

    assert told(tmp_path / "new") == told(run)
    assert all(is_equal(tmp_path / "new", step) for step in (1, 2, 3))
    assert CheckpointManager(tmp_path / "new").open(2).asset("notes") == b"2"
    assert CheckpointManager(tmp_path / "new").verify().ok
    assert [each.info.backend for each in report.steps] == [to or "safetensors"] * 3
    assert report.done("converted" if to else "copied") == [3, 1, 2]


@pytest.mark.parametrize("options", [{}, {"to": "npz"}, {"cast": {"model/w": "float64"}, "rename": [("note", "text")]}])
def test_what_is_there_is_passed_over(run: Path, tmp_path: Path, options: dict) -> None:
    migrate(run, tmp_path / "new", steps=[1], **options)
    migrate(run, tmp_path / "new", **options)
    before = files(tmp_path / "new")

    report = migrate(run, tmp_path / "new", **options)

    assert report.done("there") == [3, 1, 2]
    assert files(tmp_path / "new") == before


def test_another_step_of_that_number_is_an_error_unless_it_may_be_replaced(run: Path, tmp_path: Path) -> None:
    migrate(run, tmp_path / "new", to="npz")

    with pytest.raises(MigrationError, match=r"3 of 3 steps .*StepExistsError") as caught:
        migrate(run, tmp_path / "new", cast={"model/w": "float64"})
    report = migrate(run, tmp_path / "new", cast={"model/w": "float64"}, overwrite=True)

    assert [each.kind for each in caught.value.report.failed] == ["StepExistsError"] * 3
    assert report.done("converted") == [3, 1, 2]
    assert CheckpointManager(tmp_path / "new").open(1).specs["model/w"].dtype == "float64"


def test_one_damaged_step_does_not_keep_the_others_from_it(run: Path, tmp_path: Path) -> None:
    damaged = Path(CheckpointManager(run).path(1)) / "model.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)

    for to in (None, "npz"):
        with pytest.raises(MigrationError, match=r"1 of 3 .*: 1; the others are. Step 1: .*crc32c") as caught:
            migrate(run, tmp_path / f"new-{to}", to=to)
        assert [each.step for each in caught.value.report.failed] == [1]
        assert [info.step for info in CheckpointManager(tmp_path / f"new-{to}").steps()] == [3, 2]


def test_steps_are_chosen_and_one_that_is_not_there_is_an_error(run: Path, tmp_path: Path) -> None:
    assert migrate(run, tmp_path / "new", steps="latest").done("copied") == [2]
    assert migrate(run, tmp_path / "new", steps=(1, 2)).done("copied") == [1]
    with pytest.raises(StepNotFoundError, match="step 7"):
        migrate(run, tmp_path / "new", steps=7)
    with pytest.raises(StepNotFoundError):
        migrate(tmp_path / "nothing", tmp_path / "new")
    with pytest.raises(ValueError, match="into itself"):
        migrate(run, run)
    with pytest.raises(ValueError, match="'all', 'latest'"):
        migrate(run, tmp_path / "new", steps="newest")


def test_folders_of_hugging_face_become_steps_with_all_their_files(tmp_path: Path) -> None:
    for step in (1000, 500):
        hugging_face(tmp_path / "hf", step)
    (tmp_path / "hf" / "checkpoint-500" / "global_step500").mkdir()
    before = files(tmp_path / "hf")

    copied, converted = migrate(tmp_path / "hf", tmp_path / "a"), migrate(tmp_path / "hf", tmp_path / "b", to="npz")

    for report, folder in ((copied, "a"), (converted, "b")):
        with CheckpointManager(tmp_path / folder) as manager:
            assert [(info.step, info.is_foreign) for info in manager.steps()] == [(500, False), (1000, False)]
            assert np.array_equal(manager.restore().state["w"], np.full(5, 1000, np.float32))
            assert set(manager.open(500).assets) >= {"trainer_state.json", "optimizer.pt"}
            assert manager.open(1000).asset("trainer_state.json") == b'{"global_step": 1000}'
            assert manager.verify().ok
        assert [[*each.lost] for each in report.steps] == [["folder 'global_step500'"], []]
    assert files(tmp_path / "hf") == before
    assert migrate(tmp_path / "hf", tmp_path / "a").done("there") == [500, 1000]


def test_prefixes_of_tensorflow_and_files_of_torch_become_steps(tmp_path: Path) -> None:
    (tmp_path / "tf").mkdir()
    (tmp_path / "pt").mkdir()
    for step in (10, 9):
        ckptmgr.save(tmp_path / "tf" / f"ckpt-{step}", {"net": {"w": np.full(3, step, np.float32)}}, backend="tf_bundle")
        ckptmgr.save(tmp_path / "pt" / f"step_{step}.pt", {"net": {"w": np.full(3, step, np.float32)}}, backend="torch")

    for source in ("tf", "pt"):
        for to in (None, "safetensors"):
            report = migrate(tmp_path / source, tmp_path / f"{source}-{to}", to=to)
            with CheckpointManager(tmp_path / f"{source}-{to}") as manager:
                assert [each.info.step for each in report.steps] == [9, 10]
                assert [manager.restore(step).state["net"]["w"][0] for step in (9, 10)] == [9, 10]
                assert len({info.run for info in manager.steps()}) == 1
                assert manager.verify().ok


def test_the_order_stays_that_of_the_other_tool_when_it_goes_on(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        hugging_face(tmp_path / "hf", step)
    migrate(tmp_path / "hf", tmp_path / "new", steps=[2])
    migrate(tmp_path / "hf", tmp_path / "new")
    for step in (4, 5):
        hugging_face(tmp_path / "hf", step)

    migrate(tmp_path / "hf", tmp_path / "new")

    infos = CheckpointManager(tmp_path / "new").steps()
    assert [(info.step, info.sequence) for info in infos] == [(1, -3), (2, -2), (3, -1), (4, 0), (5, 1)]


def test_files_that_were_replaced_are_another_step(tmp_path: Path) -> None:
    hugging_face(tmp_path / "hf", 1)
    migrate(tmp_path / "hf", tmp_path / "new")
    save_file({"w": np.zeros(5, np.float32)}, tmp_path / "hf" / "checkpoint-1" / "model.safetensors")

    with pytest.raises(MigrationError, match="StepExistsError"):
        migrate(tmp_path / "hf", tmp_path / "new")


def test_what_an_executor_does_with_its_workers_is_told_of_the_steps(run: Path, tmp_path: Path) -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()

    with pytest.raises(MigrationError, match="3 of 3"):
        migrate(run, tmp_path / "new", executor=pool)


def test_two_at_once_make_each_step_once(run: Path, tmp_path: Path) -> None:
    ends = []

    def go() -> None:
        try:
            migrate(run, tmp_path / "new", to="npz")
        except MigrationError as error:
            ends.append(error.report)

    threads = [threading.Thread(target=go) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    migrate(run, tmp_path / "new", to="npz")

    assert told(tmp_path / "new") == told(run)
    assert CheckpointManager(tmp_path / "new").verify().ok


def test_progress_counts_the_bytes_of_steps(run: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    migrate(run, tmp_path / "new", progress=lambda done, total: seen.append((done, total)))

    total = sum(info.nbytes for info in CheckpointManager(run).steps())
    assert (seen[0], seen[-1]) == ((0, total), (total, total))
    assert len(seen) >= 4  # after each step at least
    assert seen == sorted(seen)
