"""Samples: a task in a fresh process of its own, in turn with the tasks of others.

A `Starter` is a process that has imported what somebody needs, has run none of it, and forks a child for each sample:
nothing is warmed, leaked or left running from one sample to the next, and no sample waits for an import.
"""

import contextlib
import ctypes
import functools
import gc
import json
import mmap
import os
import select
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TIMEOUT_S = 240
_C = ctypes.CDLL(None)
Facts = dict[str, float]
Task = Callable[[], Facts]


def nothing() -> None:
    """Needs no preparation."""


@dataclass(frozen=True)
class Way:
    """One way to do what a case is about: who does it, the sample, and what to import before."""

    who: str
    task: Task
    ready: Callable[[], object] = nothing
    rounds: int = 1_000  # fewer for what takes minutes


@dataclass(frozen=True)
class Case:
    """What several do in turn. ``limit`` and ``ours`` are those of them that the others are compared with.

    ``nbytes`` is what moves (0: no throughput is shown). ``aside`` names the second time that its samples give.
    """

    name: str
    ways: Sequence[Way]
    nbytes: int = 0
    limit: str = ""
    ours: str = ""
    aside: str = ""
    shown: bool = True


def measured(cases: Sequence[Case], rounds: int, *, say: Callable[[str], object]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The samples of each shown case, and who was left out and why.

    Who cannot be imported, or fails, is left out from there on; what is ours may not fail.

    Raises:
        RuntimeError: a sample of ours failed; its error is on stderr.
    """
    ways = [way for case in cases for way in case.ways]
    left_out: dict[str, str] = {}
    results = []
    with _starters(ways) as starters:
        for way in ways:
            if starters[way.ready].missing:
                left_out[way.who] = starters[way.ready].missing
        for case in cases:
            begun = time.perf_counter()
            samples: dict[str, list[Facts]] = {way.who: [] for way in case.ways}
            for turn in range(rounds if case.shown else 1):
                order = [way for way in case.ways if turn < way.rounds]
                for way in order if turn % 2 == 0 else reversed(order):  # so that nobody always follows the same one
                    if way.who not in left_out:
                        try:
                            samples[way.who].append(starters[way.ready].sample(way.task))
                        except RuntimeError as error:
                            if way.who.startswith("ckptmgr"):
                                raise
                            left_out[way.who] = f"failed: {error}"
            say(f"{case.name}: {time.perf_counter() - begun:.0f} s")
            if case.shown:
                results.append(_result(case, {who: each for who, each in samples.items() if each and who not in left_out}))
    return results, left_out


def timed(call: Callable[[], object], *, then: Callable[[Any], object] | None = None) -> Facts:
    """Seconds of ``call``, and of ``then`` after it, and the peak of memory beyond what was there before, in bytes.

    With ``then``, ``seconds`` is both together and ``aside`` the call alone.
    """
    gc.collect()
    gc.freeze()  # else a collection copies, page by page, what the child has from its parent
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")  # forgets the peak
    before = memory("VmRSS")
    begun = time.perf_counter()
    result = call()  # kept until the clock has stopped: freeing is not part of it
    facts = {"seconds": time.perf_counter() - begun}
    if then is not None:
        facts["aside"] = facts["seconds"]
        then(result)
        facts["seconds"] = time.perf_counter() - begun
    facts["extra_nbytes"] = max(memory("VmHWM") - before, 0)
    del result
    return facts


def memory(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(field))


def settle(nbytes: int) -> None:
    """Makes what comes next independent of what was before: nothing waits to be written, and free memory is at hand.

    A virtual machine gives memory that is not in use back to its host: then whoever touches new pages first pays several
    times. So ``nbytes`` are touched and freed right before the clock starts.
    """
    os.sync()
    np.ones(nbytes, np.uint8)


def emptied(folder: Path) -> Path:
    """That folder, without what was in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def files(folder: Path) -> list[Path]:
    """All files below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def sync(folder: Path) -> None:
    """Makes files and names below a folder durable, for who does not."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def read_in(folder: Path) -> None:
    """Has the system hold all files below a folder in memory."""
    buffer = bytearray(1 << 20)
    for path in files(folder):
        with open(path, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def drop(folder: Path) -> float:
    """Has the system forget the files below a folder, and gives the share of their pages that it still holds."""
    held = total = 0
    os.sync()  # what is not on the disk is not forgotten
    for path in files(folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        pages = _resident(descriptor, os.fstat(descriptor).st_size)
        held, total = held + int((pages & 1).sum()), total + len(pages)
        os.close(descriptor)
    return held / max(total, 1)


def _resident(descriptor: int, nbytes: int) -> np.ndarray:
    pages = np.zeros(-(-nbytes // mmap.PAGESIZE), np.uint8)
    if nbytes:
        mapped = np.frombuffer(mmap.mmap(descriptor, nbytes, prot=mmap.PROT_READ), np.uint8)
        address, into = ctypes.c_void_p(mapped.ctypes.data), ctypes.c_void_p(pages.ctypes.data)
        _C.mincore(address, ctypes.c_size_t(nbytes), into)
    return pages


def _result(case: Case, samples: dict[str, list[Facts]]) -> dict[str, Any]:
    kinds = ("seconds", "aside", "extra_nbytes", "resident")
    rows = [
        {"who": who} | {kind: [facts[kind] for facts in each] for kind in kinds if kind in each[0]}
        for who, each in samples.items()
    ]
    return {"case": case.name, "nbytes": case.nbytes, "limit": case.limit, "ours": case.ours, "aside": case.aside, "rows": rows}


@contextlib.contextmanager
def _starters(ways: Sequence[Way]) -> Iterator[dict[Callable[[], object], "Starter"]]:
    starters: dict[Callable[[], object], Starter] = {}
    try:
        for way in ways:
            if way.ready not in starters:
                starters[way.ready] = Starter(way.ready, [each.task for each in ways if each.ready == way.ready])
        yield starters
    finally:
        for starter in reversed(starters.values()):  # those forked later hold the ends of earlier ones' pipes
            starter.end()


class Starter:
    """A process that was forked from this one, has called ``ready``, and forks a child of its own for each sample.

    Used by one thread; `missing` comes first.
    """

    def __init__(self, ready: Callable[[], object], tasks: Sequence[Task]) -> None:
        self._tasks = list(tasks)
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._orders)
            os.setpgid(0, 0)
            os.dup2(2, 1)  # what peers print is no table
            try:
                _serve(ready, self._tasks, orders, answers)
            finally:
                os._exit(1)
        os.close(orders)
        os.close(answers)

    @functools.cached_property
    def missing(self) -> str:
        """Which import failed, once they are through; empty if none did."""
        return self._hear().get("missing", "")

    def sample(self, task: Task) -> Facts:
        """Runs a task in a fresh process.

        Raises:
            RuntimeError: the task failed, or took over `TIMEOUT_S`.
        """
        os.write(self._orders, b"%d\n" % self._tasks.index(task))
        facts = self._hear()
        if "failed" in facts:
            raise RuntimeError(facts["failed"])
        return facts

    def end(self) -> None:
        """Ends the process."""
        os.close(self._orders)
        os.waitpid(self._pid, 0)
        os.close(self._answers)

    def _hear(self) -> dict[str, Any]:
        text = b""
        while not text.endswith(b"\n"):
            if not select.select([self._answers], [], [], TIMEOUT_S)[0]:
                os.killpg(self._pid, signal.SIGKILL)
                return {"failed": f"no end after {TIMEOUT_S} s"}
            more = os.read(self._answers, 1 << 16)
            if not more:
                return {"failed": "its process ended"}
            text += more
        return json.loads(text)


def _serve(ready: Callable[[], object], tasks: Sequence[Task], orders: int, answers: int) -> None:
    def say(**facts: Any) -> None:
        os.write(answers, json.dumps(facts).encode() + b"\n")

    warnings.simplefilter("ignore")  # jax and others warn of forks, which is what is wanted here
    try:
        ready()
        say()
    except ImportError as error:
        say(missing=str(error))
    gc.collect()
    gc.freeze()
    with open(orders) as stream:
        for line in iter(stream.readline, ""):
            child = os.fork()
            if not child:
                try:
                    say(**tasks[int(line)]())
                except BaseException as error:  # noqa: BLE001 - a process cannot raise into another: it says what went wrong
                    traceback.print_exc()
                    say(failed=f"{type(error).__name__}: {error}"[:300])
                finally:
                    sys.stderr.flush()
                    os._exit(0)
            if os.waitpid(child, 0)[1]:
                say(failed="it crashed")
    os._exit(0)
