"""TensorFlow checkpoints written and read by ckptmgr, beside TensorFlow itself on the same state.

``python -m benchmarks.tf_bundle [--quick] [--folder DIR]`` prints a table and one JSON line a case. Every sample is a forked
child in which ckptmgr and TensorFlow have each written and read something before the clock starts, and saves have their state
in numpy arrays and in `tf.Variable`s.

- Save, ours: numpy arrays as a managed step (checksums, fsync, atomic commit), or with `ckptmgr.save` as bare files (checksums,
  fsync). Theirs: `tf.train.Checkpoint.write` of the variables, then fsync of the files and their folder.
- Replace: the same where such a checkpoint is, which then has to be deleted; a save is without that.
- Restore, ours: the state as numpy arrays, every byte verified, of our managed step, of our bare files and of TensorFlow's.
  Theirs: `tf.train.load_checkpoint` and `get_tensor` of every key, which verifies too. Both read a page cache that is warm,
  and touch every page of what they give.
- Open, ours: `ckptmgr.open_checkpoint` and every spec, with the names of the object graph. Theirs: `tf.train.load_checkpoint` and
  every shape by its key. Both open the same files.

Ratios are pair by pair: below 1 is faster than TensorFlow. Memory is the peak beyond what was there before the call; when
opening, "state" is the index.
"""

import argparse
import functools
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

import ckptmgr
from benchmarks.measure import Sample, interleaved, sample, spread
from benchmarks.save_restore import MIB, read_through, report
from benchmarks.states import State, small, transformer
from ckptmgr_tf_bundle import TFBundleBackend

SAVE, RESTORE, OPEN_S = 0.45, 0.35, 0.3  # what we want at most: ratios of the time, and seconds
Call = Callable[[], object]


def main() -> None:
    """Measures all cases and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller states and fewer rounds")
    parser.add_argument("--folder", help="where to write (default: a temporary folder)")
    args = parser.parse_args()
    nbytes, count, rounds = (64 * MIB, 4_000, 3) if args.quick else (256 * MIB, 20_000, 7)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        run(Path(folder), nbytes, count, rounds)


def run(folder: Path, nbytes: int, count: int, rounds: int) -> None:
    """All cases: a transformer of ``nbytes``, and an index of ``count`` entries. No op of TensorFlow may have run before."""
    print(f"{'case':34} {'ckptmgr':>17} {'tensorflow':>17} {'ratio':>6}  (min .. max)  peak memory beyond the state")
    measure(transformer(nbytes), folder, rounds)
    measure_open(count, folder / "many", rounds)


def measure(state: State, folder: Path, rounds: int) -> None:
    """Save and restore of one state."""
    nbytes = sum(array.nbytes for array in state.values())
    new, kept = folder / "new", folder / "kept"
    kept.mkdir()

    @functools.cache  # in each child anew: TensorFlow's threads do not live through a fork
    def checkpoint() -> tf.train.Checkpoint:
        return tf.train.Checkpoint(**{name: tf.Variable(array) for name, array in state.items()})

    def start(*, is_new: bool) -> None:
        checkpoint()
        if is_new:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
        warm(folder, nbytes)

    calls = saves(state, kept, checkpoint)
    for call in calls.values():
        sample(call)
    check(state, [call() for call in restores(kept).values()])
    sample(lambda: check(state, [named(read(str(kept / prefix))) for prefix in ("ours", "theirs")]))

    into_new = interleaved(saves(state, new, checkpoint), rounds, prepare=lambda: start(is_new=True))
    judge("save", nbytes, into_new, SAVE)
    judge("replace", nbytes, interleaved(calls, rounds, prepare=lambda: start(is_new=False)), SAVE)
    theirs: dict[str, Call] = {"theirs": lambda: read_through(read(str(kept / "theirs")))}
    judge("restore", nbytes, interleaved(restores(kept) | theirs, rounds, prepare=lambda: warm(folder, nbytes)), RESTORE)


def saves(state: State, folder: Path, checkpoint: Callable[[], tf.train.Checkpoint]) -> dict[str, Call]:
    """Each way to save the state in a folder."""
    backend = TFBundleBackend()
    manager = ckptmgr.CheckpointManager(folder / "run", backend=backend)
    return {
        "managed": lambda: manager.save(0, state, overwrite=True),
        "bare files": lambda: ckptmgr.save(folder / "ours", state, backend=backend),
        "theirs": lambda: write(checkpoint(), str(folder / "theirs")),
    }


def restores(folder: Path) -> dict[str, Callable[[], State]]:
    """Each of our ways to restore what was saved there."""
    manager = ckptmgr.CheckpointManager(folder / "run")
    return {
        "managed": lambda: read_through(manager.restore(0).state),
        "bare files": lambda: read_through(ckptmgr.load(folder / "ours")),
        "TensorFlow's": lambda: read_through(ckptmgr.load(folder / "theirs")),
    }


def measure_open(count: int, folder: Path, rounds: int) -> None:
    """Opening a checkpoint of ``count`` tensors that were saved as a tree."""
    folder.mkdir()
    prefix = str(folder / "ckpt")
    ckptmgr.save(prefix, {"block": [{"weight": array} for array in small(count).values()]}, backend=TFBundleBackend())

    def open_ours() -> object:
        with ckptmgr.open_checkpoint(prefix) as checkpoint:
            return {name: spec.shape for name, spec in checkpoint.specs.items()}

    def open_theirs() -> object:
        return tf.train.load_checkpoint(prefix).get_variable_to_shape_map()

    open_ours()
    samples = interleaved({"ours": open_ours, "theirs": open_theirs}, rounds, prepare=lambda: warm(folder, 0))
    report(f"open, {count} entries", os.path.getsize(prefix + ".index"), samples)
    seconds = spread(each.seconds for each in samples["ours"])[0]
    print(f"opened in {seconds:.3f} s (wanted for 20000 entries: at most {OPEN_S})")


def judge(verb: str, nbytes: int, samples: Mapping[str, list[Sample]], wanted: float) -> None:
    """Reports each of ours beside theirs, and whether it is as fast as we want."""
    theirs = samples["theirs"]
    for name, ours in samples.items():
        if name != "theirs":
            report(f"{verb}, {nbytes // MIB} MiB, {name}", nbytes, {"ours": ours, "theirs": theirs})
            ratio = spread(a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True))[0]
            print(f"ratio {ratio:.2f} (wanted: at most {wanted})")


def warm(folder: Path, nbytes: int) -> None:
    """Lets both formats' code run once, and the system have as much memory at hand as a state takes."""
    gc.freeze()  # else a collection copies, page by page, what the child has from its parent
    prefix = str(folder / "warm")
    write(tf.train.Checkpoint(first=tf.Variable(1.0)), prefix)
    read(prefix)
    ckptmgr.save(prefix, {"first": np.ones(1)}, backend=TFBundleBackend())
    ckptmgr.load(prefix)
    # A virtual machine takes back memory that is not in use: then whoever touches new pages first pays several times.
    np.ones(2 * nbytes, np.uint8)


def write(checkpoint: tf.train.Checkpoint, prefix: str) -> None:
    """TensorFlow's save, made durable."""
    checkpoint.write(prefix)
    for path in (prefix + ".data-00000-of-00001", prefix + ".index", os.path.dirname(prefix)):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def read(prefix: str) -> State:
    """TensorFlow's restore: every array by its key."""
    reader = tf.train.load_checkpoint(prefix)
    return {key: np.asarray(reader.get_tensor(key)) for key in reader.get_variable_to_shape_map()}


def named(found: State) -> State:
    """Arrays by the names of the variables, which TensorFlow spells its own way in its keys."""
    ending = "/.ATTRIBUTES/VARIABLE_VALUE"
    return {key.removesuffix(ending).replace("..", "."): array for key, array in found.items() if key.endswith(ending)}


def check(state: State, found: Sequence[State]) -> None:
    """Raises ValueError if an array of the state is not among those found, byte for byte."""
    for each in found:
        for name, array in state.items():
            if array.dtype != each[name].dtype or not np.array_equal(array.view(np.uint8), each[name].view(np.uint8)):
                raise ValueError(f"what was restored as {name!r} is not what was saved")


if __name__ == "__main__":
    main()
