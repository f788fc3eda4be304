"""The command: runs benchmarks, prints tables, and writes results for the docs."""

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.measure import Case, measured

# How many rounds each has: so that all together take some 15 minutes.
BENCHMARKS = {
    "save_restore": 5,
    "background": 5,
    "small_tensors": 5,
    "incremental": 3,
    "memory": 2,
    "scaling": 5,
    "shard_io": 3,
    "tf_bundle": 3,
    "hdf5": 3,
    "cloud": 5,
    "convert": 3,
}
PACKAGES = (
    "ckptmgr",
    "numpy",
    "safetensors",
    "torch",
    "jax",
    "orbax-checkpoint",
    "tensorflow",
    "keras",
    "h5py",
    "obstore",
    "s3fs",
)


def main(names: Sequence[str] | None = None) -> None:
    """Reads the command line; with ``names``, only those benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    if names is None:
        parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *BENCHMARKS], help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="small states and 2 rounds: to see that it works, not to measure")
    parser.add_argument("--rounds", type=int, help="samples of each (default: 5, and fewer where no goal depends on it)")
    parser.add_argument("--folder", help="where checkpoints are written (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="folder of the docs to write tables, plots and results.json into")
    parser.add_argument("--peers", help="only these peers, separated by commas; an empty text for none (default: all)")
    parser.add_argument("--storage", default="", help="for shard_io: path or URL of a storage")
    parser.add_argument("--report", action="store_true", help="measure nothing: write --out anew from its results.json")
    args = parser.parse_args()
    if args.report:
        report.write(args.out or Path("docs"), {})
        return
    peers = None if args.peers is None else [name.strip() for name in args.peers.split(",")]
    results = {}
    with tempfile.TemporaryDirectory(prefix="ckptmgr-bench-", dir=args.folder) as folder:
        for name in names or args.names or BENCHMARKS:
            special = {"storage": args.storage} if name == "shard_io" else {}
            rounds = args.rounds or (min(2, BENCHMARKS[name]) if args.quick else BENCHMARKS[name])
            cases = importlib.import_module(f"benchmarks.{name}").cases
            results[name] = run(name, cases, Path(folder) / name, rounds, peers=peers, quick=args.quick, **special)
            print(report.text(name, results[name]), flush=True)
            if args.out:  # after each, so that an interrupted run leaves what it has
                report.write(args.out, {name: results[name]})
    print(report.goals_text(results))


def run(name: str, cases: Callable[..., list[Case]], folder: Path, rounds: int, **options: Any) -> dict[str, Any]:
    """The results of one benchmark: where and when, who was left out and why, and all samples."""
    begun = time.perf_counter()
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=folder) as inside:
        found, left_out = measured(
            cases(Path(inside), **options), rounds, say=lambda line: print(f"  {name}: {line}", file=sys.stderr, flush=True)
        )
        where = machine(folder)
    facts = {"rounds": rounds, "quick": bool(options.get("quick")), "seconds": round(time.perf_counter() - begun)}
    return json.loads(json.dumps({"machine": where, **facts, "left_out": left_out, "cases": found}))


def machine(folder: Path) -> dict[str, Any]:
    """What the figures depend on."""
    with open("/proc/mounts") as stream:
        mounts = [line.split()[1:3] for line in stream]
    place = max((mount for mount in mounts if str(folder.resolve()).startswith(mount[0])), key=lambda mount: len(mount[0]))
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "file_system": place[1],
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
