"""HDF5 files written and read by ckptmgr, beside h5py and Keras on the same arrays.

``python -m benchmarks.hdf5 [--quick] [--folder DIR]`` prints a table and one JSON line a case. Every sample is a forked child
in which both have written and read something before the clock starts.

- Save, ours: a managed step (checksums, fsync, atomic commit), or `ckptmgr.save` of a bare file (atomic, fsync). h5py:
  ``create_dataset(data=)`` for each array, close, fsync of file and folder. Keras: `save_weights` to ``.weights.h5`` and fsync.
- Restore, ours: the state as numpy arrays of our managed step (every byte verified), of our bare file and of h5py's. h5py:
  ``dataset[()]`` of each. Keras: `load_weights` into a model. All read a page cache that is warm, and touch every page.

The transformer is bfloat16, which h5py does not store: it has the same bits as uint16, and so do its variables in Keras, whose
backend is numpy, so that no copy to a device is counted. Ratios are pair by pair: below 1 is faster than the other. Memory is
the peak beyond what was there before the call.
"""

import argparse
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

os.environ["KERAS_BACKEND"] = "numpy"  # read on the import below

import h5py
import keras
import numpy as np

import ckptmgr
from benchmarks.measure import Sample, interleaved, sample, spread
from benchmarks.save_restore import MIB, read_through, report
from benchmarks.states import State, small, transformer
from ckptmgr_hdf5 import HDF5Backend

BIG, SMALL = (0.75, 0.5), (0.4, 0.1)  # what we want at most of h5py's time: to save, to restore
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
    """All cases: a transformer of ``nbytes``, and ``count`` small tensors."""
    print(f"{'case':34} {'ckptmgr':>17} {'other':>17} {'ratio':>6}  (min .. max)  peak memory beyond the state")
    big = transformer(nbytes)
    Comparison(f"{nbytes // MIB} MiB", big, folder / "big", model(big)).measure(rounds, BIG)
    Comparison(f"{count} small", small(count), folder / "small").measure(rounds, SMALL)


class Comparison:
    """One state, saved and restored by everyone; Keras takes part if there is a model."""

    def __init__(self, label: str, state: State, folder: Path, model: keras.Model | None = None) -> None:
        self.label = label
        self.state = state
        self.bits = {name: bits(array) for name, array in state.items()}
        self.folder = folder
        self.model = model
        self.nbytes = sum(array.nbytes for array in state.values())

    def measure(self, rounds: int, wanted: tuple[float, float]) -> None:
        """Save into an empty folder, and restore."""
        new, kept = self.folder / "new", self.folder / "kept"
        kept.mkdir(parents=True)
        for call in self.saves(kept).values():
            sample(call)
        sample(lambda: self.check(kept))  # in a child: memory that was freed here, each child would copy to use

        def start() -> None:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            self.warm()

        self.judge("save", interleaved(self.saves(new), rounds, prepare=start), wanted[0])
        self.judge("restore", interleaved(self.restores(kept), rounds, prepare=self.warm), wanted[1])

    def saves(self, folder: Path) -> dict[str, Call]:
        """Each way to save the state in a folder."""
        backend = HDF5Backend()
        manager = ckptmgr.CheckpointManager(folder / "run", backend=backend)
        calls: dict[str, Call] = {
            "managed": lambda: manager.save(0, self.state),
            "bare file": lambda: ckptmgr.save(folder / "ours.h5", self.state, backend=backend),
            "h5py": lambda: write(self.bits, folder / "theirs.h5"),
        }
        return calls | ({"Keras": lambda: write_weights(self.model, folder)} if self.model else {})

    def restores(self, folder: Path) -> dict[str, Call]:
        """Each way to restore what was saved there."""
        manager = ckptmgr.CheckpointManager(folder / "run")
        calls: dict[str, Call] = {
            "managed": lambda: read_through(manager.restore(0).state),
            "bare file": lambda: read_through(ckptmgr.load(folder / "ours.h5")),
            "h5py's file": lambda: read_through(ckptmgr.load(folder / "theirs.h5")),
            "h5py": lambda: read_through(read(folder / "theirs.h5")),
        }
        return calls | ({"Keras": lambda: read_weights(self.model, folder)} if self.model else {})

    def check(self, folder: Path) -> None:
        """Raises ValueError if what anybody restored is not the state."""
        found = [call() for name, call in self.restores(folder).items() if name != "Keras"]
        if self.model:
            read_weights(self.model, folder)
            found.append({name: holder.held.numpy() for name, holder in zip(self.state, self.model.layers, strict=True)})
        for each in found:
            for name, array in self.bits.items():
                if not np.array_equal(bits(each[name]), array):
                    raise ValueError(f"what was restored as {name!r} is not what was saved")

    def judge(self, verb: str, samples: Mapping[str, list[Sample]], wanted: float) -> None:
        """Reports each of ours beside h5py and Keras, and whether it is as fast as we want."""
        for name, ours in samples.items():
            for other in ("h5py", "Keras") if name not in ("h5py", "Keras") else ():
                if other in samples:
                    report(f"{verb}, {self.label}, {name} / {other}", self.nbytes, {"ours": ours, "theirs": samples[other]})
                    ratio = spread(a.seconds / b.seconds for a, b in zip(ours, samples[other], strict=True))[0]
                    print(f"ratio {ratio:.2f}" + (f" (wanted: at most {wanted})" if other == "h5py" else ""))

    def warm(self) -> None:
        """Lets everyone's code run once, and the system have as much memory at hand as a state takes."""
        gc.freeze()  # else a collection copies, page by page, what the child has from its parent
        one = {"first": np.ones(1)}
        write(one, self.folder / "warm-theirs.h5")
        read(self.folder / "warm-theirs.h5")
        ckptmgr.save(self.folder / "warm.h5", one, backend=HDF5Backend())
        ckptmgr.load(self.folder / "warm.h5")
        # A virtual machine takes back memory that is not in use: then whoever touches new pages first pays several times.
        np.ones(2 * self.nbytes, np.uint8)


class Holder(keras.layers.Layer):
    """A layer that is one array."""

    def __init__(self, array: np.ndarray) -> None:
        super().__init__()
        self.held = self.add_weight(shape=array.shape, dtype=array.dtype.name, initializer="zeros")
        self.held.assign(array)
        self.built = True


def model(state: State) -> keras.Model:
    """A model whose weights are the bits of the state."""
    made = keras.Sequential([Holder(bits(array)) for array in state.values()])
    made.built = True
    return made


def bits(array: np.ndarray) -> np.ndarray:
    """The array as h5py can store it."""
    return array.view(np.uint16) if array.dtype.name in ("bfloat16", "uint16") else array


def write(state: State, path: Path) -> None:
    """The state by h5py, made durable."""
    with h5py.File(path, "w") as file:
        for name, array in state.items():
            file.create_dataset(name, data=array)
    sync(path)


def read(path: Path) -> State:
    """Every dataset, as h5py gives it."""
    with h5py.File(path, "r") as file:
        return {name: dataset[()] for name, dataset in file.items()}


def write_weights(model: keras.Model, folder: Path) -> None:
    """The model's weights by Keras, made durable."""
    path = folder / "keras.weights.h5"
    model.save_weights(path)
    sync(path)


def read_weights(model: keras.Model, folder: Path) -> None:
    """The model's weights by Keras."""
    model.load_weights(folder / "keras.weights.h5")
    read_through({name: variable.numpy() for name, variable in enumerate(model.variables)})


def sync(path: Path) -> None:
    """Makes a file and its name durable."""
    for each in (path, path.parent):
        descriptor = os.open(each, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


if __name__ == "__main__":
    main()
