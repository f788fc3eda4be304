"""Durable save and verified restore beside ``safetensors.numpy`` on the same state.

``python -m benchmarks.save_restore [--quick] [--folder DIR]`` prints a table and one JSON line a case. Ours: a managed
step, with checksums, fsync and atomic commit, and a restore that verifies every byte. Theirs: ``save_file`` and fsync of
the file and its folder; ``load_file``. Every restored byte is read in both. Ratios are pair by pair: below 1 is faster.
"""

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

import ckptmgr
from benchmarks.measure import Sample, interleaved, spread
from benchmarks.states import State, small, transformer

MIB = 1 << 20


def main() -> None:
    """Measures all cases and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller states and fewer rounds")
    parser.add_argument("--folder", help="where to write (default: a temporary folder)")
    args = parser.parse_args()
    size, count, rounds = (64 * MIB, 4_000, 3) if args.quick else (256 * MIB, 20_000, 7)
    print(f"{'case':34} {'ckptmgr':>17} {'safetensors':>17} {'ratio':>6}  (min .. max)  peak memory beyond the state")
    for label, state in [(f"transformer {size // MIB} MiB bf16", transformer(size)), (f"{count} small tensors", small(count))]:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            measure(label, state, Path(folder), rounds)


def measure(label: str, state: State, folder: Path, rounds: int) -> None:
    """Save and restore of one state by both, in turn."""
    nbytes = sum(array.nbytes for array in state.values())
    manager = ckptmgr.CheckpointManager(folder / "run")
    theirs = folder / "theirs.safetensors"
    manager.save(0, state)
    save_file(state, theirs)
    if not np.array_equal(
        *(np.concatenate([a.view(np.uint8).ravel() for _, a in sorted(s.items())]) for s in (state, manager.restore(0).state))
    ):
        raise SystemExit("what was restored is not what was saved")

    def save_ours() -> None:
        manager.save(1, state, overwrite=True)

    def save_theirs() -> None:
        save_file(state, folder / "new.safetensors")
        for path in (folder / "new.safetensors", folder):
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    report(f"durable save, {label}", nbytes, interleaved({"ours": save_ours, "theirs": save_theirs}, rounds))
    restores = {"ours": lambda: read_through(manager.restore(0).state), "theirs": lambda: read_through(load_file(theirs))}
    report(f"restore, {label}", nbytes, interleaved(restores, rounds))
    shutil.rmtree(folder / "run")


def read_through(state: State) -> State:
    """Touches every page, so that a lazy map is no advantage."""
    for array in state.values():
        array.reshape(-1).view(np.uint8)[::4096].sum()
    return state


def report(case: str, nbytes: int, samples: dict[str, list[Sample]]) -> None:
    """One line for people, one JSON line for programs."""
    ours, theirs = samples["ours"], samples["theirs"]
    ratio, low, high = spread(a.seconds / b.seconds for a, b in zip(ours, theirs, strict=True))
    seconds: dict[str, float] = {name: spread(sample.seconds for sample in group)[0] for name, group in samples.items()}
    extra = {name: spread(sample.extra_nbytes for sample in group)[0] for name, group in samples.items()}
    shown: Callable[[str], str] = lambda name: f"{seconds[name] * 1e3:6.0f} ms {nbytes / MIB / seconds[name]:5.0f} MB/s"  # noqa: E731
    memory = f"{extra['ours'] / nbytes:.2f} / {extra['theirs'] / nbytes:.2f} states"
    print(f"{case:34} {shown('ours')} {shown('theirs')} {ratio:6.2f}  ({low:.2f} .. {high:.2f})  {memory}")
    facts = {"case": case, "nbytes": nbytes, "rounds": len(ours), "ratio": ratio, "ratio_min": low, "ratio_max": high}
    facts |= {f"{name}_s": value for name, value in seconds.items()} | {
        f"{name}_extra_nbytes": int(v) for name, v in extra.items()
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
