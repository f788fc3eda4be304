"""A checkpoint in one format becomes one in another: the same tensors, the same tree, the same metadata, or a refusal."""

from pathlib import Path

import conversions
import ml_dtypes
import numpy as np
import pytest
from conversions import FILES, FORMATS, assert_same, at

import ckptmgr
from ckptmgr import UnsupportedTensorError, convert
from ckptmgr.errors import CorruptCheckpointError, StepExistsError

assert ml_dtypes  # numpy knows "bfloat16" by it
WHOLE = {"note": "x", "deep": {"a": [1, None]}}


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_a_state_is_the_same_in_every_other_format_and_back(tmp_path: Path, source: str, to: str) -> None:
    start = conversions.saved(tmp_path, source)

    there = convert(start, tmp_path / f"there-{FILES[to]}", to=to)
    back = convert(tmp_path / f"there-{FILES[to]}", tmp_path / f"back-{FILES[source]}", to=source)

    with at(start) as old, at(tmp_path / f"there-{FILES[to]}") as new, at(tmp_path / f"back-{FILES[source]}") as again:
        assert_same(new.load(), old.load())
        assert_same(again.load(), old.load())
        assert new.metadata | WHOLE == new.metadata
        assert again.metadata == old.metadata == WHOLE
        assert new.aliases == old.aliases == again.aliases
    assert there.lost == back.lost == {}
    assert all(tensor.source_crc32c in (None, tensor.crc32c) for tensor in (*there.tensors, *back.tensors))


@pytest.mark.parametrize("backend", FORMATS)
def test_a_step_keeps_metrics_metadata_and_assets_through_a_file(tmp_path: Path, backend: str) -> None:
    manager = conversions.manager(tmp_path / "run", backend)
    metadata = {"note": "x", "long": "y" * 10_000}
    manager.save(1, conversions.state(), metrics={"loss": 0.5, "nan": float("nan")}, metadata=metadata, assets={"a.txt": b"a\0"})

    for to in FORMATS:
        with manager.open(1) as opened:
            out = convert(opened, tmp_path / FILES[to], to=to)
        info = convert(tmp_path / FILES[to], tmp_path / "other", to=backend, step=1, overwrite=True)

        with conversions.manager(tmp_path / "other", backend).open(1) as new:
            assert_same(new.load(), manager.restore(1).state)
            assert new.metrics["loss"] == 0.5
            assert np.isnan(new.metrics["nan"])
            assert new.metadata["note"] == "x"
            assert new.asset("a.txt") == b"a\0"
        assert "asset 'a.txt'" in out.carried
        assert "metadata 'long'" in info.carried
        assert conversions.manager(tmp_path / "other", backend).verify(1).problems == ()


def test_a_tensor_that_the_format_cannot_hold_is_refused_by_name_and_nothing_appears(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "a.h5", {"good": np.ones(3), "bad": np.ones(3, np.complex128)}, backend="hdf5")

    with pytest.raises(UnsupportedTensorError, match="'bad'"):
        convert(tmp_path / "a.h5", tmp_path / "b.safetensors")

    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_the_report_tells_names_checksums_and_what_was_cast(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "cp", {"net": {"w": np.ones((2, 3), np.float32), "b": np.arange(3)}}, backend="tf_bundle")

    report = convert(
        tmp_path / "cp",
        tmp_path / "b.safetensors",
        rename=[("net/", "model/")],
        cast={"*/w": "bfloat16"},
        select="model/*",
    )

    by_name = {tensor.name: tensor for tensor in report.tensors}
    assert {name: tensor.source for name, tensor in by_name.items()} == {"model/w": "net/w", "model/b": "net/b"}
    assert by_name["model/b"].source_crc32c == by_name["model/b"].crc32c is not None
    assert (by_name["model/w"].dtype, by_name["model/w"].note) == ("bfloat16", "cast float32 to bfloat16")
    assert by_name["model/w"].source_crc32c is not None
    assert "cast float32 to bfloat16: 'model/w'" in str(report)
    assert report.to_json()["tensors"][0]["shape"] == [2, 3]
    assert_same(
        ckptmgr.load(tmp_path / "b.safetensors"),
        {"model": {"w": np.ones((2, 3), "bfloat16"), "b": np.arange(3)}},
    )


def test_what_is_there_is_replaced_only_if_that_is_wanted(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "a.h5", {"w": np.ones(3)}, backend="hdf5")
    ckptmgr.save(tmp_path / "b.safetensors", {"w": np.zeros(3)})

    with pytest.raises(FileExistsError, match=r"b\.safetensors"):
        convert(tmp_path / "a.h5", tmp_path / "b.safetensors")
    convert(tmp_path / "a.h5", tmp_path / "b.safetensors", overwrite=True)
    convert(tmp_path / "a.h5", tmp_path / "run", to="npz", step=3)
    with pytest.raises(StepExistsError):
        convert(tmp_path / "a.h5", tmp_path / "run", to="npz", step=3)

    assert_same(ckptmgr.load(tmp_path / "b.safetensors"), {"w": np.ones(3)})


def test_a_file_is_not_converted_onto_itself(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "a.h5", {"w": np.ones(3)}, backend="hdf5")

    with pytest.raises(ValueError, match="convert to another name"):
        convert(tmp_path / "a.h5", tmp_path / "a.h5", overwrite=True)


def test_plain_names_of_another_tool_stay_a_plain_file(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "a.safetensors", {"model.0.w": np.ones(3), "x/y": np.zeros(2)})

    for to in ("npz", "hdf5", "tf_bundle", "safetensors"):
        report = convert(tmp_path / "a.safetensors", tmp_path / f"b-{FILES[to]}", to=to)

        assert_same(ckptmgr.load(tmp_path / f"b-{FILES[to]}"), {"model.0.w": np.ones(3), "x/y": np.zeros(2)})
        assert "state tree" not in report.held


def test_the_ending_tells_the_format_or_the_error_lists_those_there_are(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "a.safetensors", {"w": np.ones(3)})

    assert convert(tmp_path / "a.safetensors", tmp_path / "b.npz").backend == "npz"
    with pytest.raises(ValueError, match="'safetensors'"):
        convert(tmp_path / "a.safetensors", tmp_path / "b.bin")


def test_slips_are_told(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "a.safetensors", {"w": np.ones(3), "v": np.ones(3)})
    new = tmp_path / "b.h5"

    with pytest.raises(ValueError, match="matches no name"):
        convert(tmp_path / "a.safetensors", new, select="x*")
    with pytest.raises(ValueError, match="matches no name"):
        convert(tmp_path / "a.safetensors", new, cast={"x": "float16"})
    with pytest.raises(ValueError, match="two values the name"):
        convert(tmp_path / "a.safetensors", new, rename=[("v", "w")])
    with pytest.raises(UnsupportedTensorError, match="float31"):
        convert(tmp_path / "a.safetensors", new, cast={"w": "float31"})
    assert not new.exists()


@pytest.mark.parametrize("step", [None, 4])
def test_damage_in_the_source_is_told_before_anything_appears(tmp_path: Path, step: int | None) -> None:
    ckptmgr.save(tmp_path / "cp", {"a": np.zeros(5000), "b": np.ones(5000)}, backend="tf_bundle")
    data = tmp_path / "cp.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[60_000] ^= 1
    data.write_bytes(raw)
    where = tmp_path / "run" if step else tmp_path / "new" / "b.npz"

    with pytest.raises(CorruptCheckpointError, match="'b'") as told:
        convert(tmp_path / "cp", where, to="npz", step=step)

    assert told.value.tensor == "b"
    assert [path for path in where.parent.rglob("*") if path.is_file() and ".npz" in path.name] == []


def test_damage_under_a_cast_is_told(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "cp", {"a": np.zeros(500_000)}, backend="tf_bundle")
    data = tmp_path / "cp.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[60_000] ^= 1
    data.write_bytes(raw)

    for budget in (1 << 20, 64 << 20):
        with pytest.raises(CorruptCheckpointError, match="'a'"):
            convert(tmp_path / "cp", tmp_path / "b.npz", cast={"a": "float32"}, budget=budget)

    assert not (tmp_path / "b.npz").exists()


def test_a_crc32_of_a_zip_counts_as_a_checksum(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", w=np.arange(5000.0), v=np.arange(3))
    report = convert(tmp_path / "a.npz", tmp_path / "good.safetensors")
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    raw[9000] ^= 1
    (tmp_path / "a.npz").write_bytes(raw)

    with pytest.raises(CorruptCheckpointError, match="'w'"):
        convert(tmp_path / "a.npz", tmp_path / "b.safetensors")

    assert "2 compared with the source's checksums" in str(report)
    assert not (tmp_path / "b.safetensors").exists()
