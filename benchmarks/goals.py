"""What we want to reach, as claims about measured figures. A goal that is not reached is shown like one that is."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

SAFE, TF, H5 = "ckptmgr safetensors", "ckptmgr tf_bundle", "ckptmgr hdf5"
EAGER = ("torch.save", "torch DCP", "Orbax", "tf.train.Checkpoint", "h5py", "numpy.savez")
Figure = Literal["ratio", "call", "ms", "states", "stored", "again"]


@dataclass(frozen=True)
class Goal:
    """At most ``at_most`` for a figure of ``who`` in a case: a ratio to all of ``than``, milliseconds, states of memory or disk.

    ``or_ms`` of difference are allowed as well. ``call`` is a ratio of the second times of samples, ``again`` that time.
    """

    benchmark: str
    case: str
    who: str
    at_most: float
    than: Sequence[str] = ()
    figure: Figure = "ratio"
    or_ms: float = 0

    def told(self) -> str:
        """The goal in words."""
        others = " and of ".join(self.than)
        what = {
            "ratio": f"time of {others}",
            "call": f"time of {others}, the call alone",
            "ms": "time",
            "states": "extra memory",
            "stored": "disk blocks",
            "again": "time, again",
        }
        return f"{self.case}: {self.who}, {what[self.figure]}" + f" (or {self.or_ms:.0f} ms more)" * bool(self.or_ms)

    def shown(self, value: float) -> str:
        """A value of the figure."""
        unit = {"ratio": "x", "call": "x", "ms": " ms", "again": " ms", "states": " states", "stored": " states"}[self.figure]
        return f"{value:.2f}{unit}" if value < 10 else f"{value:.0f}{unit}"


def verdict(goal: Goal, results: Mapping[str, Any], ratio: Callable[[Any, Any], Sequence[float]]) -> tuple[float, bool] | None:
    """The figure as measured (of several the worst), and whether it is reached; None if it was not measured."""
    for case in results.get(goal.benchmark, {}).get("cases", ()):
        rows = {row["who"]: row for row in case["rows"]}
        if case["case"] != goal.case or goal.who not in rows:
            continue
        if goal.figure in ("call", "again"):
            rows = {who: row | {"seconds": row["aside"]} for who, row in rows.items() if "aside" in row}
        ours, others = rows[goal.who], [rows[who] for who in goal.than if who in rows]
        seconds = statistics.median(ours["seconds"])
        if goal.than:
            more_s = [seconds - statistics.median(each["seconds"]) for each in others]
            values = [ratio(ours, each)[0] for each in others]
            pairs = zip(values, more_s, strict=True)
            reached = [value <= goal.at_most or 1e3 * more < (goal.or_ms or -inf) for value, more in pairs]
            return (max(values), all(reached)) if others else None
        value = statistics.median(ours["extra_nbytes"]) / case["nbytes"] if goal.figure in ("states", "stored") else 1e3 * seconds
        return value, value <= goal.at_most
    return None


FROZEN = "save of a frozen base and 1 % that changes, disk blocks"
SAVE, LOAD, FILL, COLD = "durable save", "restore", "restore into given arrays", "restore, not in memory"
BLOCKED, BACK = "blocked by a save", "ckptmgr BackgroundSaver"
MANY = ", 20,000 tensors"
UP, DOWN, LINK = "upload to a null server", "download from a null server", "over a link of 50 MB/s"
SUMMED = ["obstore, parts of 32 MiB with CRC64", "obstore, parts of 8 MiB with CRC64"]  # the checksum that ours sends, too
WIRE = {
    UP: ["parts of 32 MiB", "parts of 128 MiB"],
    DOWN: ["8 streams into arrays", "4 streams into arrays", "ranges in its memory"],
}
ALIKE = {UP: ["8 parts with CRC64 and crc32c"], DOWN: ["8 streams with crc32c"]}  # with all checksums of ours
CONVERT = "converting 4,096 MiB of tf_bundle"

GOALS = (
    Goal("save_restore", SAVE, SAFE, 0.85, ["safetensors.numpy"]),
    Goal("save_restore", SAVE, SAFE, 0.85, ["raw write"]),
    Goal("save_restore", SAVE, SAFE, 0.55, ["torch DCP"]),
    Goal("save_restore", SAVE, SAFE, 0.25, ["Orbax"]),
    Goal("save_restore", SAVE, SAFE, 0.4, ["tf.train.Checkpoint"]),
    Goal("save_restore", SAVE, SAFE, 0.05, figure="states"),
    Goal("save_restore", LOAD, SAFE, 0.4, ["safetensors.numpy"]),
    Goal("save_restore", LOAD, SAFE, 1.0, EAGER),
    Goal("save_restore", LOAD, SAFE, 1.05, figure="states"),
    Goal("save_restore", LOAD, f"{SAFE}, mmap", 0.15, ["safetensors.numpy"]),
    Goal("save_restore", FILL, SAFE, 1.1, ["raw preadv"]),
    Goal("save_restore", COLD, SAFE, 0.85, ["safetensors.numpy"]),
    *(Goal("save_restore", case, who, 1.15, [SAFE], or_ms=15) for case in (SAVE, LOAD, FILL) for who in (TF, H5)),
    Goal("background", BLOCKED, BACK, 1.3, ["memcpy"]),
    Goal("background", BLOCKED, BACK, 1.0, ["torch DCP async_save", "torch DCP, kept stager"]),
    Goal("background", BLOCKED, BACK, 0.5, ["Orbax AsyncCheckpointer"]),
    Goal("background", BLOCKED, BACK, 1.05, figure="states"),
    Goal("background", f"{BLOCKED} of jax arrays", BACK, 1.0, figure="ms"),
    Goal("incremental", FROZEN, "ckptmgr incremental", 0.3, ["ckptmgr full"]),
    Goal("incremental", FROZEN, "ckptmgr incremental", 1.4, figure="stored"),
    Goal("small_tensors", SAVE + MANY, SAFE, 1.0, ["safetensors.numpy"]),
    Goal("small_tensors", LOAD + MANY, SAFE, 0.5, ["safetensors.numpy"], figure="call"),
    Goal("small_tensors", "one tensor of 20,000", SAFE, 0.1, ["safetensors.numpy"]),
    Goal("small_tensors", "durable save of 10 KiB in a warm process", SAFE, 5.0, figure="ms"),
    *(Goal("convert", CONVERT, who, 1.0, ["cp, fsync"]) for who in (SAFE, H5)),
    *(Goal("convert", CONVERT, who, 0.05, figure="states") for who in (SAFE, H5)),  # of 4 GiB: 200 MiB
    Goal("scaling", "listing 10,000 steps", "ckptmgr", 600, figure="ms"),
    Goal("scaling", "listing 10,000 steps", "ckptmgr", 50, figure="again"),
    *(Goal("cloud", case, "ckptmgr", 1 / 0.9, [f"obstore, {how}" for how in hows]) for case, hows in WIRE.items()),
    Goal("cloud", UP, "ckptmgr", 1 / 0.9, SUMMED),
    *(Goal("cloud", case, "ckptmgr", 1 / 0.9, [f"obstore, {how}" for how in hows]) for case, hows in ALIKE.items()),
    *(Goal("cloud", case, "ckptmgr", 1 / 3, ["s3fs"]) for case in (UP, DOWN)),
    *(Goal("cloud", case, "ckptmgr", 0.25, figure="states") for case in (UP, DOWN)),
    *(Goal("cloud", f"{what} {LINK}", "ckptmgr", 1 / 0.9, ["the bytes alone"]) for what in ("save", "restore")),
)
