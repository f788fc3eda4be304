"""Managers in other processes: one that stays and is asked, and its children, which may be killed at any of their requests.

A child is forked from a process that has imported everything and used no store yet, so that a life costs milliseconds.
"""

import json
import os
import signal
import subprocess
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np

TESTS = Path(__file__).parent
# What is imported before a child is forked, by the scheme of the URL.
NEEDED = defaultdict[str, list[str]](
    list, s3=["obstore.store", "s3fs"], gs=["obstore.store", "gcsfs"], az=["obstore.store", "adlfs"]
)


def state(value: int, nbytes: int = 4_000) -> dict[str, Any]:
    """What is saved as ``value``, about so large: no two of them share a tensor."""
    rng = np.random.default_rng(value)
    return {"model": {"w": rng.integers(0, 255, nbytes, np.uint8), "b": rng.random(9).astype(np.float16)}, "value": value}


def value_of(found: dict[str, Any]) -> int:
    """The value that was saved as this state; fails if a single byte of it is another."""
    expected = state(found["value"], len(found["model"]["w"]))
    assert all(np.array_equal(found["model"][name], array) for name, array in expected["model"].items())
    return int(found["value"])


class Worker:
    """A process with a manager of the run at a URL. It does what it is asked, one thing after another."""

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None, **options: Any) -> None:
        given = json.dumps({"url": url, "storage_options": storage_options, **options})
        command = [sys.executable, "-m", "store_workers", given]
        path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=TESTS, env={**os.environ, "PYTHONPATH": path}
        )

    def begin(self, what: str, *args: Any) -> None:
        """Has it begin; `answer` gives the result."""
        self._process.stdin.write(json.dumps([what, *args]).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """The result, or the name of the error."""
        line = self._process.stdout.readline()
        assert line, "the worker has ended"
        return json.loads(line)

    def ask(self, what: str, *args: Any) -> Any:
        self.begin(what, *args)
        return self.answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)


class _Work:
    """What a worker can do."""

    def __init__(self, given: dict[str, Any]) -> None:
        from ckptmgr import CheckpointManager

        self.manager = CheckpointManager(**given)

    def save(self, step: int, value: int, nbytes: int = 4_000, overwrite: bool = False) -> str:
        self.manager.save(step, state(value, nbytes), overwrite=overwrite)
        return "ok"

    def restore(self, step: int | None = None) -> int:
        return value_of(self.manager.restore(step).state)

    def steps(self) -> list[int]:
        return [info.step for info in self.manager.steps()]

    def delete(self, step: int) -> None:
        self.manager.delete(step)

    def collect(self, last: int) -> None:
        from ckptmgr import KeepLast

        self.manager.retention = KeepLast(last)
        self.manager.collect()

    def sweep(self) -> None:
        self.manager.sweep(grace=0)


def told(call: Callable[[], Any]) -> Any:
    """The result of a call, or the name of its error."""
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return type(error).__name__


def live(given: dict[str, Any], what: str, args: list[Any], begin: int, answer: int) -> None:
    """A child's life: it waits until it may begin, does one thing, tells the result and is gone."""
    os.read(begin, 1)
    result = told(lambda: getattr(_Work(given), what)(*args))
    os.write(answer, json.dumps(result).encode())
    os._exit(0)


def fork(given: dict[str, Any], what: str, args: list[Any]) -> None:
    """Tells the pid of a child that will do this; has it begin at the next line, and tells its result: None if it was killed."""
    (begin, go), (receive, answer) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        live(given, what, args, begin, answer)
    for fd in (begin, answer):
        os.close(fd)
    print(json.dumps(pid), flush=True)  # noqa: T201
    sys.stdin.readline()
    os.write(go, b" ")
    os.close(go)
    with os.fdopen(receive, "rb") as stream:
        result = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    print(json.dumps(json.loads(result) if status == 0 else None), flush=True)  # noqa: T201


def main() -> None:
    import ckptmgr  # noqa: F401  (now, and not in every child)

    given = json.loads(sys.argv[1])
    work: _Work | None = None
    for line in sys.stdin:
        what, *args = json.loads(line)
        if what == "fork":
            fork(given, args[0], args[1:])
            continue
        work = work or _Work(given)
        result = told(lambda work=work, what=what, args=args: getattr(work, what)(*args))
        print(json.dumps(result), flush=True)  # noqa: T201


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".* does not honour conditional writes")
    for module in NEEDED[sys.argv[1].partition("://")[0].rpartition('"')[2]]:
        __import__(module)
    main()
    os._exit(0)  # there is nothing to be ended, and taking everything down takes a second
