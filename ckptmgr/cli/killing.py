"""Runs the demo's training in a process of its own, kills it with SIGKILL, and looks at what is then on disk."""

import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ckptmgr import CheckpointManager
from ckptmgr.cli.interrupting import uninterrupted

INSIDE = 2  # kills that must hit a save: they leave its claim behind
MOST = 20  # kills, whatever they have hit
_CHILD = "from ckptmgr.cli.digits import main; main()"
# How many threads share a sum decides its last bit, and the last bit is what is compared.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Death:
    """The moment of a kill: so long after so many saves have begun."""

    saves: int
    after_s: float


@dataclass(frozen=True, slots=True)
class Life:
    """One start of the training process, up to its death or its end, and what a look at the run found then."""

    began: int  # the step it resumed at
    was_killed: bool
    newest: int | None  # committed step
    steps: int  # how many are committed
    damaged: int  # of them
    claims: int  # saves that were cut off
    files: int  # that no manifest names
    nbytes: int


@dataclass(frozen=True, slots=True)
class Training:
    """A training run: its folder, its data, and the number of its steps."""

    folder: Path
    data: Path
    steps: int

    def live(self, death: Death | None = None) -> tuple[int, list[float], bool]:
        """Starts or resumes the training, up to ``death`` or its end.

        Gives the step it began at, how long each save took in seconds, and whether it was killed.

        Raises:
            ChildProcessError: it failed by itself.
        """
        command = [sys.executable, "-P", "-c", _CHILD, str(self.folder), str(self.data), str(self.steps)]
        began, saves, took_s = 0, 0, []
        with _started(command) as child:
            assert child.stdout is not None
            for event, step in map(str.split, child.stdout):
                if event == "start":
                    began = int(step)
                elif event == "save":
                    saves, save_began = saves + 1, time.perf_counter()
                    if death and saves == death.saves:
                        time.sleep(death.after_s)
                        child.kill()
                        break
                else:
                    took_s.append(time.perf_counter() - save_began)
        if child.returncode > 0:
            raise ChildProcessError(f"the training process failed with exit code {child.returncode}")
        return began, took_s, child.returncode < 0

    def look(self, began: int, was_killed: bool) -> Life:
        """What is in the run's folder now; what a killed save left there is swept."""
        with CheckpointManager(self.folder) as manager:
            swept = manager.sweep(grace=0)
            report = manager.verify()
            latest = manager.latest()
        return Life(
            began=began,
            was_killed=was_killed,
            newest=latest.step if latest else None,
            steps=len(report.steps),
            damaged=len({step for step, _ in report.problems}),
            claims=swept.claims,
            files=swept.files + swept.uploads,
            nbytes=swept.nbytes,
        )


@contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The training in a session of its own, where Ctrl-C does not reach it. It does not go on after who has started it."""
    environ = {**os.environ, **_ONE_THREAD}
    with ExitStack() as stack:
        with uninterrupted():
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ, start_new_session=True)
            stack.enter_context(child)
            stack.enter_context(_ended(child))
        yield child


@contextmanager
def _ended(child: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        child.kill()
        raise


def lives(training: Training, kills: int, save_s: float) -> Iterator[Life]:
    """Kills the training at least ``kills`` times, and on until `INSIDE` of them have hit a save; then lets it end.

    ``save_s`` is about how long a save takes.
    """
    died = inside = 0
    while died < kills or (inside < INSIDE and died < MOST):
        # Two of three kills aim at a save; the others come at any moment.
        after_s = save_s * (random.uniform(0.1, 0.6) if died % 3 else random.uniform(0, 8))
        began, _, was_killed = training.live(Death(random.randint(1, 3), after_s))
        life = training.look(began, was_killed)
        yield life
        if not was_killed:
            return
        died, inside = died + 1, inside + (life.claims > 0)
    began, _, was_killed = training.live()
    yield training.look(began, was_killed)


def undisturbed(training: Training) -> float:
    """Runs the training to its end; gives about how long a save took."""
    _, took_s, _ = training.live()
    return statistics.median(took_s)
