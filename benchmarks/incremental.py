"""Saves of a frozen base with a small adapter that changes: incremental beside full, in time and in disk blocks.

``python -m benchmarks.incremental [--quick] [--folder DIR]`` saves 20 steps into each of two runs, in turn, durably and with
checksums, each save in a fresh process that has the step before in its memory. It prints the ratio of seconds, pair by pair,
and what the incremental run stores (blocks of linked files counted once) as a multiple of its first step.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measure import interleaved, spread
from benchmarks.states import State, transformer
from ckptmgr import CheckpointManager

MIB = 1 << 20


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller state and fewer steps")
    parser.add_argument("--folder", help="where to write (default: a temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        run(Path(folder), *((64 * MIB, 5) if args.quick else (256 * MIB, 20)))


def run(folder: Path, nbytes: int, steps: int) -> None:
    """``steps`` saves of a base of ``nbytes`` with an adapter of 1 % of it."""
    state = {"base": transformer(nbytes), "adapter": transformer(nbytes // 100, seed=1)}
    managers = {
        "incremental": CheckpointManager(folder / "incremental", incremental=True),
        "full": CheckpointManager(folder / "full"),
    }
    for manager in managers.values():
        manager.save(0, state)
    first = stored(folder / "incremental")
    seconds: dict[str, list[float]] = {name: [] for name in managers}
    for step in range(1, steps):
        train(state["adapter"])
        calls = {name: lambda manager=manager, step=step: manager.save(step, state) for name, manager in managers.items()}
        for name, (sample,) in interleaved(calls, 1).items():
            seconds[name].append(sample.seconds)
    check(managers["incremental"], state, steps - 1)
    ratio, low, high = spread(a / b for a, b in zip(seconds["incremental"], seconds["full"], strict=True))
    blocks = stored(folder / "incremental") / first
    case = f"{nbytes // MIB} MiB frozen + 1 %, {steps} saves"
    ours, full = (spread(seconds[name])[0] for name in ("incremental", "full"))
    print(
        f"{case}: {ours * 1e3:.0f} / {full * 1e3:.0f} ms = {ratio:.2f} ({low:.2f} .. {high:.2f}), stored {blocks:.2f}x one save"
    )
    facts = {"case": case, "nbytes": nbytes, "ratio": ratio, "ratio_min": low, "ratio_max": high, "stored": blocks}
    print(json.dumps(facts | {"ours_s": ours, "theirs_s": full}))


def train(adapter: State) -> None:
    """Changes every tensor."""
    for array in adapter.values():
        array.view(np.uint16)[...] += 1


def check(manager: CheckpointManager, state: dict[str, State], step: int) -> None:
    """What was saved last comes back."""
    found = manager.restore(step).state
    if any(found[key][name].tobytes() != array.tobytes() for key, group in state.items() for name, array in group.items()):
        raise SystemExit("what was restored is not what was saved")


def stored(folder: Path) -> int:
    """Bytes of all disk blocks below a folder; files of several names count once."""
    return sum({status.st_ino: status.st_blocks * 512 for path in folder.rglob("*") if (status := path.stat())}.values())


if __name__ == "__main__":
    main()
