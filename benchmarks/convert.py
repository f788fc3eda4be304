"""A TensorFlow checkpoint converted to other formats, beside ``cp`` of the same bytes with an fsync of the copy.

4 GiB of which every tensor has bytes of its own. Each conversion is verified by the source's checksums, and the new file is
durable at the end. Memory is what a sample takes beyond the libraries that it has imported.
"""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import ckptmgr
from benchmarks.measure import Case, Facts, Way, settle, sync, timed
from benchmarks.running import main
from benchmarks.states import MIB
from ckptmgr import backend as backends

SOURCE, COPY = "cp.ckpt", "cp, fsync"
FORMATS = ("safetensors", "hdf5", "npz")


def cases(folder: Path, peers: Sequence[str] | None = None, *, quick: bool = False, nbytes: int = 0) -> list[Case]:
    """Into each format, beside a copy."""
    nbytes = nbytes or (64 if quick else 4096) * MIB
    source = folder / "from" / SOURCE

    def copy(new: Path) -> None:
        subprocess.run(["cp", "-r", source.parent, new], check=True)
        sync(new)

    def sample(call: Callable[[Path], object]) -> Facts:
        new = folder / "new"
        shutil.rmtree(new, ignore_errors=True)
        settle(0)
        facts = timed(lambda: call(new))
        shutil.rmtree(new)
        return facts

    def way(backend: str) -> Way:
        return Way(f"ckptmgr {backend}", lambda: sample(lambda new: ckptmgr.convert(source, f"{new}/", to=backend)), _ready)

    ways = [way(backend) for backend in FORMATS]
    return [
        Case("making a bundle", [Way("ckptmgr", lambda: _make(source, nbytes), _ready)], shown=False),
        Case(
            f"converting {nbytes // MIB:,} MiB of tf_bundle",
            [Way(COPY, lambda: sample(copy)), *ways],
            nbytes,
            limit=COPY,
            ours="ckptmgr safetensors",
        ),
    ]


def _make(source: Path, nbytes: int) -> Facts:
    """The source: one tensor's random bytes at a time, so that no large state is held."""
    source.parent.mkdir(parents=True)
    size = max(nbytes // 64, 64) // 4
    block = np.random.default_rng(1).standard_normal(size + 64).astype(np.float32)
    state = {f"layer-{index}/w": block[index : index + size] for index in range(64)}
    return timed(lambda: ckptmgr.save(source, state, backend="tf_bundle"))


def _ready() -> None:
    for name in ("tf_bundle", *FORMATS):
        backends.find(name)


if __name__ == "__main__":
    main(["convert"])
