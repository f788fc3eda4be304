"""Exports: the files by their names, what is in them, and that nothing appears half. Real tools open them elsewhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from incrementals import small_groups
from runs import files
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import ckptmgr
from ckptmgr import CheckpointManager, CorruptCheckpointError, StepNotFoundError, export, open_checkpoint
from ckptmgr.storage import PosixStore

CONFIG, TOKENIZER = b'{"model_type": "tiny"}', b'{"version": "1.0"}'


def state(step: int) -> dict[str, Any]:
    w = np.arange(12, dtype=np.float32).reshape(3, 4) + step
    model = {"embed.weight": w, "layers": [{"b": np.full(3, step, np.float64)}], "head.weight": w, "note": "text"}
    return {"model": model, "optimizer": {"state": {0: {"exp_avg": w * 2}}}, "epoch": step}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with CheckpointManager(tmp_path / "run") as manager:
        for step in (100, 200):
            assets = {"config.json": CONFIG, "tokenizer.json": TOKENIZER, "notes.txt": b"mine"}
            manager.save(step, state(step), metrics={"loss": 0.5}, metadata={"note": "x"}, assets=assets)
    return tmp_path / "run"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- Hugging Face


def test_hugging_face_gets_the_model_and_its_config(run: Path, tmp_path: Path) -> None:
    report = export(run, tmp_path / "hf", to="hf")

    assert names(tmp_path / "hf") == {"model.safetensors", "config.json", "tokenizer.json"}
    assert (tmp_path / "hf" / "config.json").read_bytes() == CONFIG
    found = load_file(tmp_path / "hf" / "model.safetensors")
    assert {*found} == {"embed.weight", "layers.0.b"}
    assert found["embed.weight"].tolist() == state(200)["model"]["embed.weight"].tolist()
    with safe_open(tmp_path / "hf" / "model.safetensors", "numpy") as opened:
        assert opened.metadata() == {"format": "pt", "head.weight": "embed.weight"}
    assert ckptmgr.load(tmp_path / "hf")["head.weight"].shape == (3, 4)
    assert report.left_out == ("optimizer/state/0/exp_avg",)
    assert report.held == ("asset 'config.json'", "asset 'tokenizer.json'")
    assert {*report.lost} == {"asset 'notes.txt'", "metadata 'note'", "metric 'loss'", "value 'note'"}
    assert all(tensor.source_crc32c == tensor.crc32c is not None for tensor in report.tensors)


def test_large_models_are_cut_into_shards_with_an_index(run: Path, tmp_path: Path) -> None:
    report = export(run, tmp_path / "hf", to="hf", step=100, max_shard_size="0.04KB")

    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert names(tmp_path / "hf") == {*shards, "model.safetensors.index.json", "config.json", "tokenizer.json"}
    assert report.files[-1].endswith("model.safetensors.index.json")
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {"embed.weight": shards[0], "layers.0.b": shards[1]}
    assert index["metadata"]["total_size"] == 48 + 24
    with safe_open(tmp_path / "hf" / shards[1], "numpy") as opened:
        assert opened.metadata()["format"] == "pt"


def test_an_adapter_is_called_one(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, {"model": {"lora_A.weight": np.ones(3)}}, assets={"adapter_config.json": b"{}"})

    export(tmp_path / "run", tmp_path / "hf", to="hf")

    assert names(tmp_path / "hf") == {"adapter_model.safetensors", "adapter_config.json"}


@pytest.mark.parametrize("to", ["hf", "torch"])
@pytest.mark.parametrize("src", ["theirs", "theirs/checkpoint-5", "theirs/checkpoint-5/model.safetensors"])
def test_config_and_tokenizer_of_another_tools_step_come_along(tmp_path: Path, src: str, to: Any) -> None:
    folder = tmp_path / "theirs" / "checkpoint-5"
    folder.mkdir(parents=True)
    save_file({"a.weight": np.ones(3)}, folder / "model.safetensors", {"format": "pt"})
    for name, data in {"config.json": CONFIG, "tokenizer.json": TOKENIZER, "trainer_state.json": b"{}"}.items():
        (folder / name).write_bytes(data)

    report = export(tmp_path / src, tmp_path / "out", to=to)
    export(tmp_path / src, tmp_path / "alone" / "w.safetensors", to="hf")

    weights = {"hf": "model.safetensors", "torch": "pytorch_model.bin"}[to]
    assert names(tmp_path / "out") == {weights, "config.json", "tokenizer.json"}
    assert (tmp_path / "out" / "config.json").read_bytes() == CONFIG
    assert {*report.held} >= {"asset 'config.json'", "asset 'tokenizer.json'"}
    assert names(tmp_path / "alone") == {"w.safetensors"}


def test_a_file_of_any_name_takes_no_config_along(tmp_path: Path) -> None:
    save_file({"w": np.ones(3)}, tmp_path / "mine.safetensors")
    (tmp_path / "config.json").write_bytes(CONFIG)

    export(tmp_path / "mine.safetensors", tmp_path / "out", to="hf")

    assert names(tmp_path / "out") == {"model.safetensors"}


def test_a_config_of_keras_is_none_of_hugging_faces(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, {"model": {"w": np.ones(3)}}, assets={"config.json": b'{"class_name": "Sequential", "config": {}}'})

    report = export(tmp_path / "run", tmp_path / "hf", to="hf")

    assert names(tmp_path / "hf") == {"model.safetensors"}
    assert "asset 'config.json'" in report.lost


def test_two_names_that_dots_make_one_are_an_error(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, {"model": {"a.b": np.ones(3), "a": {"b": np.zeros(3)}}})

    with pytest.raises(ValueError, match=r"'a\.b'.*rename"):
        export(tmp_path / "run", tmp_path / "hf", to="hf")


# ---- what is chosen


def test_another_part_is_chosen_by_globs_and_renamed(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "m.safetensors", to="hf", select="model/layers/*", rename=[("0/", "block/")], cast={"*": "float32"})
    export(run, tmp_path / "k.safetensors", to="hf", select="model/layers/*", strip=False)

    assert load_file(tmp_path / "m.safetensors")["block.b"].dtype == np.float32
    assert {*load_file(tmp_path / "k.safetensors")} == {"model.layers.0.b"}
    assert names(tmp_path) == {"run", "m.safetensors", "k.safetensors"}


def test_a_state_without_a_plain_model_lists_its_groups(tmp_path: Path) -> None:
    ckptmgr.save(
        tmp_path / "a.npz",
        {"actor": {"w": np.ones(2)}, "critic": {"w": np.ones(2)}, "optimizer": {"m": np.ones(2)}},
        backend="npz",
    )

    with pytest.raises(ValueError, match="'actor', 'critic', 'optimizer'"):
        export(tmp_path / "a.npz", tmp_path / "hf", to="hf")

    assert not (tmp_path / "hf").exists()
    export(tmp_path / "a.npz", tmp_path / "hf", to="hf", select="critic")
    assert {*load_file(tmp_path / "hf" / "model.safetensors")} == {"w"}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"select": "nothing/*"}, r"nothing/\*"),
        ({"to": "onnx"}, "onnx.*'torch'"),
        ({"max_shard_size": "big"}, "'big' is no size"),
        ({"rename": [("x", "y")]}, "'x' to 'y' matches no name"),
    ],
)
def test_slips_are_told_and_nothing_is_written(run: Path, tmp_path: Path, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        export(run, tmp_path / "out", **{"to": "hf", **wrong})

    assert not (tmp_path / "out").exists()


# ---- what is there, what fails


def test_what_is_there_stays_unless_overwrite_is_said(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "hf", to="hf", step=100, max_shard_size=40)
    before = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}

    with pytest.raises(FileExistsError):
        export(run, tmp_path / "hf", to="hf", max_shard_size=40)
    assert {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()} == before

    export(run, tmp_path / "hf", to="hf", overwrite=True)
    assert names(tmp_path / "hf") == {"model.safetensors", "config.json", "tokenizer.json"}
    assert load_file(tmp_path / "hf" / "model.safetensors")["layers.0.b"].tolist() == [200, 200, 200]


@pytest.mark.parametrize("to", ["hf", "torch", "tf"])
def test_damage_in_the_step_is_told_and_nothing_appears(run: Path, tmp_path: Path, to: Any) -> None:
    [file] = [path for path in run.rglob("model.safetensors") if "00000200" in str(path)]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)

    with pytest.raises(CorruptCheckpointError, match=r"model\.safetensors"):
        export(run, tmp_path / "out", to=to, step=200, select="*")

    assert files(tmp_path / "out") == set()


def test_a_failure_at_the_last_file_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = PosixStore.stage

    def failing(self: PosixStore, key: str, windows: Any, nbytes: int) -> Any:
        if key.endswith("index.json"):
            raise OSError(28, "No space left on device")
        return stage(self, key, windows, nbytes)

    monkeypatch.setattr(PosixStore, "stage", failing)
    with pytest.raises(OSError, match="No space"):
        export(run, tmp_path / "hf", to="hf", max_shard_size=40)

    assert files(tmp_path / "hf") == set()


def test_a_run_of_ours_is_no_place_for_it(run: Path) -> None:
    with pytest.raises(ValueError, match="run of ckptmgr"):
        export(run, run, to="tf")


def test_nor_is_a_step_of_ours(run: Path) -> None:
    [attempt] = (run / "step-00000100").glob("a-*")
    before = files(run)

    for folder in (attempt.parent, attempt):
        with pytest.raises(ValueError, match="step of ckptmgr"):
            export(run, folder, to="tf")

    assert files(run) == before


def test_an_incremental_step_is_exported_whole(tmp_path: Path) -> None:
    # In memory there are no links, and a file that did not change is a reference.
    with small_groups(), CheckpointManager("memory://exported-run", incremental=True) as manager:
        for step in (1, 2):
            manager.save(step, {"model": {"w": np.ones(1000)}, "head": {"w": np.full(3, step)}})
        with manager.open(2) as opened:
            assert any(entry.origin for entry in opened.files)
        export(manager, tmp_path / "hf", to="hf", step=2)
        manager.delete(1)
        manager.delete(2)

    found = load_file(tmp_path / "hf" / "model.safetensors")
    assert found["w"].sum() == 1000


def test_a_source_is_a_run_a_step_an_open_checkpoint_or_a_file(run: Path, tmp_path: Path) -> None:
    with CheckpointManager(run) as manager, manager.open(100) as opened:
        for number, src in enumerate((run, manager, opened, manager.path(100), str(tmp_path / "0.safetensors"))):
            export(src, tmp_path / f"{number}.safetensors", to="hf")
        with pytest.raises(ValueError, match="step="):
            export(opened, tmp_path / "b.safetensors", to="hf", step=100)

    found = [load_file(tmp_path / f"{number}.safetensors")["layers.0.b"][0] for number in range(5)]
    assert found == [200, 200, 100, 100, 200]
    with pytest.raises(StepNotFoundError, match="300"):
        export(run, tmp_path / "c.safetensors", to="hf", step=300)


# ---- TensorFlow


def state_lines(folder: Path) -> list[str]:
    """The paths in TensorFlow's state file; each is told with a time, as its own manager asks."""
    lines = (folder / "checkpoint").read_text().splitlines()
    times = [line for line in lines if line.startswith("all_model_checkpoint_timestamps: ")]
    assert len(times) == len(lines) // 2
    return [line for line in lines if line not in times]


def test_steps_exported_into_one_folder_are_all_in_its_state_file(run: Path, tmp_path: Path) -> None:
    for step in (200, 100):
        export(run, tmp_path / "tf", to="tf", step=step)

    assert state_lines(tmp_path / "tf") == [
        'model_checkpoint_path: "ckpt-200"',
        'all_model_checkpoint_paths: "ckpt-100"',
        'all_model_checkpoint_paths: "ckpt-200"',
    ]
    assert names(tmp_path / "tf") == {
        "checkpoint",
        *(f"ckpt-{step}.{end}" for step in (100, 200) for end in ("index", "data-00000-of-00001")),
    }
    with open_checkpoint(tmp_path / "tf") as opened:
        assert opened.load()["epoch"] == 200


def test_the_state_file_keeps_the_order_of_others_and_forgets_what_is_gone(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "tf", to="tf", step=100)
    for file in (tmp_path / "tf").glob("ckpt-100.*"):
        file.rename(file.with_name(file.name.replace("ckpt-100", "best")))
    (tmp_path / "tf" / "checkpoint").write_text(
        'model_checkpoint_path: "best"\nall_model_checkpoint_paths: "ckpt-7"\nall_model_checkpoint_paths: "best"\n'
    )

    export(run, tmp_path / "tf", to="tf", step=100)

    assert state_lines(tmp_path / "tf") == [
        'model_checkpoint_path: "ckpt-100"',
        'all_model_checkpoint_paths: "best"',
        'all_model_checkpoint_paths: "ckpt-100"',
    ]


def test_a_damaged_step_does_not_enter_the_state_file(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "tf", to="tf", step=100)
    before = (tmp_path / "tf" / "checkpoint").read_bytes()
    [file] = [path for path in run.rglob("model.safetensors") if "00000200" in str(path)]
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")

    with pytest.raises(CorruptCheckpointError):
        export(run, tmp_path / "tf", to="tf", step=200)

    assert (tmp_path / "tf" / "checkpoint").read_bytes() == before
    assert names(tmp_path / "tf") == {"checkpoint", "ckpt-100.index", "ckpt-100.data-00000-of-00001"}


# ---- names


def test_weights_of_torch_are_called_as_hugging_face_calls_them(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "a", to="torch")
    export(run, tmp_path / "b", to="torch", select="*")
    export(run, tmp_path / "c", to="torch", max_shard_size=40)
    export(run, tmp_path / "d" / "mine.pth", to="torch")

    assert names(tmp_path / "a") == {"pytorch_model.bin", "config.json", "tokenizer.json"}
    assert names(tmp_path / "b") == {"checkpoint.pt"}
    shards = {f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)}
    assert names(tmp_path / "c") == {*shards, "pytorch_model.bin.index.json", "config.json", "tokenizer.json"}
    assert names(tmp_path / "d") == {"mine.pth"}
    for folder in "abcd":
        found = ckptmgr.load(tmp_path / folder)
        assert (found["model"]["layers"][0]["b"] if folder == "b" else found["layers.0.b"]).tolist() == [200, 200, 200]


def test_nothing_that_tells_of_keras_is_an_error_that_says_so(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"how Keras saves this model.*swap_weights"):
        export(run, tmp_path / "keras", to="keras")

    assert not (tmp_path / "keras").exists()
