"""HDF5 files written and read by ckptmgr, beside h5py and Keras on the same arrays.

Restores read our managed step, our bare file, and h5py's own. The transformer is bfloat16, which h5py does not store: it has
the same bits as uint16, and so do its variables in Keras, which read into the variables of a model.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.formats import Format
from benchmarks.measure import Case
from benchmarks.peers import H5py, Keras, Ours, OursBare
from benchmarks.running import main
from benchmarks.states import MIB, small, transformer


def cases(
    folder: Path, peers: Sequence[str] | None = None, *, quick: bool = False, nbytes: int = 0, count: int = 0
) -> list[Case]:
    """A transformer, and many small tensors."""
    theirs = [peer for peer in (H5py(), Keras()) if peers is None or peer.name in peers]
    ours = [Ours("hdf5"), OursBare("hdf5")]
    count = count or (2_000 if quick else 20_000)
    big = Format(transformer(nbytes or (64 if quick else 256) * MIB), folder / "big", ours, theirs)
    many = Format(small(count), folder / "many", ours, theirs[:1], label=f", {count:,} tensors", slow={"h5py": 2})
    return [*big.cases(), *many.cases()]


if __name__ == "__main__":
    main(["hdf5"])
