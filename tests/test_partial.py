"""What a file has and no array holds is told wherever the file is used; to leave it out is asked for by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner, Result

import ckptmgr
from ckptmgr import CheckpointManager, UnsupportedTensorError, convert, diff, export
from ckptmgr.cli.app import app

W = np.arange(6, dtype=np.float32).reshape(2, 3)
RECORDS = np.array([(1, 2.5), (2, 3.5)], [("a", "<i4"), ("b", "<f8")])


def write(file: h5py.File) -> None:
    file["model/w"] = W
    file["model/table"] = RECORDS


def records(file: h5py.File) -> None:
    file["odd"] = RECORDS


def chunked_records(file: h5py.File) -> None:
    file.create_dataset("odd", data=RECORDS, chunks=True, compression="gzip")


def enumeration(file: h5py.File) -> None:
    file.create_dataset("odd", data=[0, 1], dtype=h5py.enum_dtype({"RED": 0, "BLUE": 1}, basetype="i1"))


def lists(file: h5py.File) -> None:
    file.create_dataset("odd", (2,), dtype=h5py.vlen_dtype("i4"))[0] = [1, 2]


def references(file: h5py.File) -> None:
    file.create_dataset("odd", data=[file.ref], dtype=h5py.ref_dtype)


def regions(file: h5py.File) -> None:
    file["w2"] = W
    file.create_dataset("odd", data=[file["w2"].regionref[0:1]], dtype=h5py.regionref_dtype)


def opaque(file: h5py.File) -> None:
    file["odd"] = np.array([b"abc"], "V3")


def bits(file: h5py.File) -> None:
    made = h5py.h5d.create(file.id, b"odd", h5py.h5t.STD_B8LE, h5py.h5s.create_simple((4,)))
    made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(4, dtype=np.uint8))


def long_doubles(file: h5py.File) -> None:
    file["odd"] = np.ones(2, np.longdouble)


KINDS = [records, chunked_records, enumeration, lists, references, regions, opaque, bits, long_doubles]


@pytest.mark.parametrize("options", [{}, {"libver": "latest"}], ids=["own parser", "by h5py"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_hdf5_has_and_no_array_holds_is_refused_by_name(
    tmp_path: Path, kind: Callable[[h5py.File], None], options: dict[str, Any]
) -> None:
    with h5py.File(tmp_path / "m.h5", "w", **options) as file:
        file["w"] = W
        kind(file)

    for use in (ckptmgr.load, lambda path: convert(path, tmp_path / "n.safetensors")):
        with pytest.raises(UnsupportedTensorError, match=r"does not read: 'odd' \(.*say select=.* 'w'") as caught:
            use(tmp_path / "m.h5")
        assert caught.value.tensor == "odd"
    assert [path.name for path in tmp_path.iterdir()] == ["m.h5"]
    np.testing.assert_array_equal(ckptmgr.load(tmp_path / "m.h5", select="w")["w"], W)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        write(file)
    return tmp_path / "m.h5"


def test_a_restore_into_a_template_tells_of_it_too(path: Path) -> None:
    into = {"model": {"w": np.zeros((2, 3), np.float32)}}

    with ckptmgr.open_checkpoint(path) as opened:
        with pytest.raises(UnsupportedTensorError, match="'model/table'"):
            opened.restore(into=into)
        assert not into["model"]["w"].any()
        report = opened.restore(into=into, strict=False).report

    assert report.unexpected == ("model/table",)
    np.testing.assert_array_equal(into["model"]["w"], W)


def test_a_conversion_that_leaves_it_out_says_so(path: Path, tmp_path: Path) -> None:
    report = convert(path, tmp_path / "n.h5", select="*/w")

    assert report.left_out == ("model/table",)
    assert (report.held, report.carried) == (("state tree",), ())
    with h5py.File(tmp_path / "n.h5") as file:
        assert [*file] == ["model"]
        assert [*file["model"]] == ["w"]


def test_globs_are_on_the_new_names(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTensorError, match="'model/table'"):
        convert(path, tmp_path / "n.npz", rename=[("model/", "net/")], select="net/*")

    assert convert(path, tmp_path / "n.npz", rename=[("model/", "net/")], select="net/w").left_out == ("model/table",)


@pytest.mark.parametrize("to", ["tf", "torch"])
def test_an_export_is_refused(path: Path, tmp_path: Path, to: Any) -> None:
    with pytest.raises(UnsupportedTensorError, match="'model/table'"):
        export(path, tmp_path / "out.pt", to=to)


def test_two_files_are_not_called_the_same_for_what_was_not_compared(path: Path) -> None:
    report = diff(path, path)

    assert (report.is_same, report.unknown) == (False, ("model/table",))
    assert diff(path, path, select="*/w").is_same


def test_a_step_of_another_tool_is_not_adopted_without_it(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "ckpt-5.h5", "w") as file:
        write(file)
    manager = CheckpointManager(tmp_path, backend="hdf5")

    with pytest.raises(UnsupportedTensorError, match="'model/table'"):
        manager.adopt(5)
    with pytest.warns(RuntimeWarning, match="step 5 is not adopted: .*'model/table'"):
        assert manager.adopt() == []
    with pytest.raises(UnsupportedTensorError, match="'model/table'"):
        manager.restore(5)

    assert [path.name for path in tmp_path.iterdir() if path.suffix] == ["ckpt-5.h5"]


def test_what_was_added_to_a_file_of_ours_is_told(tmp_path: Path) -> None:
    ckptmgr.save(tmp_path / "m.h5", {"model": {"w": W}, "epoch": 3}, backend="hdf5")
    with h5py.File(tmp_path / "m.h5", "a") as file:
        file["notes"] = RECORDS

    with pytest.raises(UnsupportedTensorError, match="'notes'"):
        ckptmgr.load(tmp_path / "m.h5")
    assert ckptmgr.load(tmp_path / "m.h5", select=["model/*", "epoch"])["epoch"] == 3


def test_records_and_raw_bytes_of_numpy_are_refused_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", w=W, records=RECORDS, half=W.astype(ml_dtypes.bfloat16))

    with pytest.raises(UnsupportedTensorError, match=r"'half' \(12 bytes: .*'records'|'records' .*'half'"):
        ckptmgr.load(tmp_path / "m.npz")
    assert [*ckptmgr.load(tmp_path / "m.npz", select="w")] == ["w"]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_the_command_shows_it_among_the_tensors_that_can_be_read(path: Path) -> None:
    done, told = call("show", path), json.loads(call("show", path, "--json").stdout)

    assert done.exit_code == 0
    assert "NOT READ  model/table (shape 2, 24 bytes: records" in done.stdout
    assert told["unreadable"].keys() == {"model/table"}
    refused = call("convert", path, path.with_name("n.npz"))
    assert (refused.exit_code, "say --select, globs" in refused.stderr) == (1, True)
    assert "not compared, as it cannot be read: model/table" in call("diff", path, path).stdout
    assert call("convert", path, path.with_name("n.npz"), "--select", "model/w").exit_code == 0
