"""State files and the real TensorFlow, both ways."""

from pathlib import Path

import pytest
from frameworks import tf

from ckptmgr_tf_bundle.origin import Origin
from ckptmgr_tf_bundle.statefile import State, format, parse

ORIGIN = Origin("checkpoint", "run/checkpoint")
PATHS = [
    "ckpt-1",
    "run 1/ckpt-2",
    "né-😀",
    "quo\"te's",
    "back\\slash\\n\\303",
    "tab\tnewline\nreturn\r",
    "bell\x07del\x7f1",
    "a\u2028b",
]


@pytest.mark.parametrize("path", PATHS)
def test_tensorflow_reads_the_paths_we_write(tmp_path: Path, path: str) -> None:
    (tmp_path / "checkpoint").write_bytes(format(State(path, ("older", path), (1700000041.0, 1700000051.25), 1.5)))

    read = tf.train.get_checkpoint_state(str(tmp_path))

    assert read.model_checkpoint_path == f"{tmp_path}/{path}"
    assert [*read.all_model_checkpoint_paths] == [f"{tmp_path}/older", f"{tmp_path}/{path}"]
    assert [*read.all_model_checkpoint_timestamps] == [1700000041.0, 1700000051.25]
    assert read.last_preserved_timestamp == 1.5


@pytest.mark.parametrize("path", PATHS)
def test_we_read_the_paths_tensorflow_writes(tmp_path: Path, path: str) -> None:
    tf.compat.v1.train.update_checkpoint_state(
        str(tmp_path), path, ["older", path], all_model_checkpoint_timestamps=[1.0, 2.5], last_preserved_timestamp=0.25
    )

    state = parse((tmp_path / "checkpoint").read_bytes(), ORIGIN)

    assert state == State(path, ("older", path), (1.0, 2.5), 0.25)


@pytest.mark.parametrize("name", ["ckpt-1", "né-1", 'quo"te-1'])
def test_tensorflow_finds_the_latest_that_we_name(tmp_path: Path, name: str) -> None:
    saved = tf.train.Checkpoint(step=tf.Variable(7)).write(str(tmp_path / name))
    (tmp_path / "checkpoint").write_bytes(format(State(name, (name,))))

    assert tf.train.latest_checkpoint(str(tmp_path)) == saved


def test_checkpoint_manager_goes_on_from_what_we_write(tmp_path: Path) -> None:
    step = tf.Variable(7)
    names = tuple(tf.train.Checkpoint(step=step).write(f"{tmp_path}/ckpt-{number}").rpartition("/")[2] for number in (1, 2))
    (tmp_path / "checkpoint").write_bytes(format(State(names[1], names, (1700000041.0, 1700000051.25), 1.5)))

    manager = tf.train.CheckpointManager(tf.train.Checkpoint(step=step), str(tmp_path), max_to_keep=2)
    manager.save(checkpoint_number=3)

    assert parse((tmp_path / "checkpoint").read_bytes(), ORIGIN).all == ("ckpt-2", "ckpt-3")
