"""Checkpoints that Orbax saved, in all its forms: read without it, found as steps, migrated, and refused if they are hostile."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from orbax_program import FORMS, state

import ckptmgr
from ckptmgr import CheckpointManager, MigrationError, convert, migrate
from ckptmgr.backend import Box, crc32c
from ckptmgr.errors import CorruptCheckpointError, UnsafeCheckpointError, UnsupportedTensorError
from ckptmgr.testing.samples import same

PROGRAM = Path(__file__).parents[1] / "orbax_program.py"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("orbax")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-W", "ignore", str(PROGRAM), str(folder)], check=True, timeout=240, env=environment)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint of plain zarr, to be damaged."""
    return Path(shutil.copytree(saved / "zarr", tmp_path / "copy"))


def read(folder: Path) -> Any:
    with ckptmgr.open_checkpoint(folder) as checkpoint:
        return checkpoint.load()


def is_same(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(is_same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(is_same, found, expected))
    return same(found, expected) if isinstance(expected, np.ndarray) else (type(found), found) == (type(expected), expected)


def change(file: Path, edit: Any) -> None:
    found = json.loads(file.read_text())
    edit(found)
    file.write_text(json.dumps(found))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_comes_back_bit_for_bit_in_its_tree(saved: Path, form: str) -> None:
    with ckptmgr.open_checkpoint(saved / form) as checkpoint:
        assert checkpoint.backend == "orbax"
        assert is_same(checkpoint.load(), state())
        part = checkpoint.read("params/bfloat16", Box((1, 0), (4, 2)))
        assert same(part, np.ascontiguousarray(state()["params"]["bfloat16"][1:4, :2]))
        assert checkpoint.verify() == []


def test_jax_and_orbax_are_not_needed(saved: Path) -> None:
    script = f"import sys, ckptmgr; ckptmgr.load({str(saved / 'ocdbt')!r}); print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert {"jax", "orbax"} & set(done.stdout.split()) == set()


def test_a_step_of_several_items_has_each_under_its_name(saved: Path) -> None:
    found = read(saved / "several" / "1")

    assert {key: [*value] for key, value in found.items()} == {"ema": ["v"], "model": ["w"]}


def test_items_that_are_json_come_along_and_others_are_told(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    step = Path(shutil.copytree(saved / "several" / "1", tmp_path / "1"))
    for name, file, data in (("metrics", "metrics", b'{"loss": 0.5}'), ("proto", "metadata", b"\x08\x01"), ("odd", "x", b"x")):
        (step / name).mkdir()
        (step / name / file).write_bytes(data)

    report = convert(step, tmp_path / "a.npz")

    with ckptmgr.open_checkpoint(tmp_path / "a.npz") as opened:
        assert opened.metadata["orbax"] == {"items": {"metrics": {"loss": 0.5}, "more": {"x": 1}}}
    assert set(report.lost) == {"blob 'odd'", "blob 'proto'"}
    assert "neither arrays nor JSON" in report.lost["blob 'odd'"]
    assert "neither arrays nor JSON, they are left out: 'odd', 'proto'" in caplog.text


def test_steps_of_its_manager_are_found_and_migrated(saved: Path, tmp_path: Path) -> None:
    with CheckpointManager(saved / "run") as manager:
        assert [(info.step, info.backend, info.is_foreign) for info in manager.steps()] == [
            (5, "orbax", True),
            (10, "orbax", True),
        ]
        assert manager.restore().state["step"] == 10

    with pytest.raises(MigrationError, match="say to="):
        migrate(saved / "run", tmp_path / "new")
    report = migrate(saved / "run", tmp_path / "new", to="safetensors")

    assert report.done("converted") == [5, 10]
    assert CheckpointManager(tmp_path / "new").restore(5).state["w"].tolist() == [5, 5, 5]


def test_it_is_only_read(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTensorError, match="only read"):
        ckptmgr.save(f"{tmp_path}/", {"w": np.zeros(3)}, backend="orbax")


def test_links_and_names_that_lead_out_are_refused(copied: Path, tmp_path: Path) -> None:
    shutil.copytree(copied / "params.float32", tmp_path / "secret")

    def lead_out(found: Any) -> None:
        found["tree_metadata"]["x"] = {
            "key_metadata": [{"key": "../secret", "key_type": 2}],
            "value_metadata": {"value_type": "np.ndarray"},
        }

    shutil.copytree(copied, tmp_path / "linked")
    (tmp_path / "linked" / "params.float32" / "0.0").unlink()
    (tmp_path / "linked" / "params.float32" / "0.0").symlink_to(tmp_path / "secret" / "0.0")
    change(copied / "_METADATA", lead_out)

    with pytest.raises(UnsafeCheckpointError, match=r"\.\./secret"):
        read(copied)
    with pytest.raises(UnsafeCheckpointError, match="link"):
        read(tmp_path / "linked")


def test_a_database_that_leads_out_is_refused(tmp_path: Path) -> None:
    import tensorstore as ts

    inside, outside, folder = b"AAAAAAAAAA/", b"../outside/", tmp_path / "copy"
    config = {"compression": None, "max_inline_value_bytes": 0}
    base = {"driver": "ocdbt", "base": f"file://{folder}/", "config": config, "value_data_prefix": inside.decode(), "path": "w/"}
    array = ts.open({"driver": "zarr", "kvstore": base}, create=True, dtype=ts.float32, shape=[9]).result()
    array.write(np.ones(9, np.float32)).result()
    leaf = {"key_metadata": [{"key": "w", "key_type": 2}], "value_metadata": {"value_type": "np.ndarray"}}
    (folder / "_METADATA").write_text(json.dumps({"tree_metadata": {"('w',)": leaf}}))
    assert read(folder)["w"].tolist() == [1] * 9
    shutil.copytree(folder / "AAAAAAAAAA", tmp_path / "outside")
    for node in [path for path in folder.rglob("*") if path.is_file() and inside in path.read_bytes()]:
        body = node.read_bytes()[:-4].replace(inside, outside)
        node.write_bytes(body + crc32c(body).to_bytes(4, "little"))

    with pytest.raises(CorruptCheckpointError, match="Invalid key"):
        read(folder)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"shape": [1 << 40, 3], "chunks": [4, 3]}, "much larger"),
        ({"shape": [4, 3], "chunks": [1 << 40, 3]}, "larger than itself"),
        ({"dtype": "<q9"}, "cannot be opened"),
        ({"shape": [-4, 3]}, "cannot be opened"),
        ({"compressor": {"id": "unknown"}}, "cannot be opened"),
    ],
)
def test_claims_are_bounded_before_memory_is_taken(copied: Path, claim: dict[str, Any], message: str) -> None:
    change(copied / "params.float32" / ".zarray", lambda found: found.update(claim))

    with pytest.raises(CorruptCheckpointError, match=message):
        read(copied)


def test_damage_is_told_with_the_tensor(copied: Path) -> None:
    chunk = copied / "params.float32" / "0.0"
    data = chunk.read_bytes()

    for broken in (data[: len(data) // 2], b"", None):
        if broken is None:
            chunk.unlink()
        else:
            chunk.write_bytes(broken)
        with pytest.raises(CorruptCheckpointError, match=r"params\.?/?float32"):
            read(copied)


@pytest.mark.parametrize(
    "text", ["", "[", "[]", "{}", '{"tree_metadata": 1}', '{"tree_metadata": {"a": {}}}', "[" * 99_999, '{"tree_metadata": {"a": '
             '{"key_metadata": [{"key": "a", "key_type": 9}], "value_metadata": {"value_type": "x"}}}}']
)  # fmt: skip
def test_damaged_metadata_is_an_error_of_the_checkpoint(copied: Path, text: str) -> None:
    (copied / "_METADATA").write_text(text)

    with pytest.raises(CorruptCheckpointError, match="_METADATA"):
        read(copied)
