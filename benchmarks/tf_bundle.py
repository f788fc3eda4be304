"""TensorFlow's checkpoints written, replaced, read and opened by ckptmgr, beside TensorFlow itself.

Restores read our managed step, our bare files, and TensorFlow's own file. "Opened" is every spec with the names of the object
graph, beside every shape by its key, of the same files.
"""

from collections.abc import Sequence
from pathlib import Path

import ckptmgr
from benchmarks.formats import Format
from benchmarks.measure import Case, Facts, Way, emptied, read_in, settle, timed
from benchmarks.peers import Ours, OursBare, TensorFlow
from benchmarks.running import main
from benchmarks.states import MIB, small, transformer


def cases(
    folder: Path, peers: Sequence[str] | None = None, *, quick: bool = False, nbytes: int = 0, count: int = 0
) -> list[Case]:
    """A transformer, and an index of many entries."""
    theirs = [TensorFlow()] if peers is None or TensorFlow.name in peers else []
    form = Format(
        transformer(nbytes or (64 if quick else 256) * MIB), folder / "big", [Ours("tf_bundle"), OursBare("tf_bundle")], theirs
    )
    return [*form.cases(), *opened(folder / "many", count or (4_000 if quick else 20_000), theirs)]


def opened(folder: Path, count: int, theirs: Sequence[TensorFlow]) -> list[Case]:
    """Opening a checkpoint of ``count`` tensors that were saved as a tree."""

    def make() -> Facts:
        state = {"block": [{"weight": array} for array in small(count).values()]}
        ckptmgr.save(emptied(folder) / "model", state, backend="tf_bundle")
        return {"seconds": 0}

    def ours() -> Facts:
        def call() -> object:
            with ckptmgr.open_checkpoint(folder / "model") as checkpoint:
                return {name: spec.shape for name, spec in checkpoint.specs.items()}

        OursBare("tf_bundle").warm(folder.parent / "warm")
        read_in(folder)
        settle(MIB)
        return timed(call)

    def tensorflow() -> Facts:
        import tensorflow as tf

        theirs[0].warm(folder.parent / "warm")
        read_in(folder)
        settle(MIB)
        return timed(lambda: tf.train.load_checkpoint(str(folder / "model")).get_variable_to_shape_map())

    name = "ckptmgr tf_bundle, bare files"
    ways = [Way(name, ours), *(Way(peer.name, tensorflow, peer.ready) for peer in theirs)]
    return [Case("making", [Way(name, make)], shown=False), Case(f"opened, {count:,} entries", ways, ours=name)]


if __name__ == "__main__":
    main(["tf_bundle"])
