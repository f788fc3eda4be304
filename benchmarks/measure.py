"""One sample: a call in a forked child of its own, timed, with the memory it took on top."""

import json
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """Seconds of the call, and bytes of memory it took beyond what was there before."""

    seconds: float
    extra_nbytes: int


def sample(call: Callable[[], object], *, prepare: Callable[[], object] | None = None) -> Sample:
    """Runs ``call`` in a fresh fork, so that nothing is warmed or leaked from one sample to the next.

    With ``prepare`` the child runs that first, before the clock starts; memory is counted after it.

    Raises:
        RuntimeError: the call failed.
    """
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        try:
            if prepare is not None:
                prepare()
            _reset_peak()
            before = _memory("VmRSS")
            begun = time.perf_counter()
            result = call()  # kept until the clock has stopped: freeing is not part of it
            seconds = time.perf_counter() - begun
            os.write(send, json.dumps([seconds, max(_memory("VmHWM") - before, 0)]).encode())
            del result
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    if not text:
        raise RuntimeError("the sampled call failed; its error is above")
    return Sample(*json.loads(text))


def interleaved(
    calls: Mapping[str, Callable[[], object]], rounds: int, *, prepare: Callable[[], object] | None = None
) -> dict[str, list[Sample]]:
    """``rounds`` samples of each call, in turn, so that a drift of the machine meets all of them."""
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(sample(call, prepare=prepare))
    return samples


def spread(values: Iterable[float]) -> tuple[float, float, float]:
    """Median, minimum and maximum."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[0], ordered[-1]


def _reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")


def _memory(field: str) -> int:
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(field))
