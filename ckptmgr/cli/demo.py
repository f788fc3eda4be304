"""``ckptmgr demo``: a training run is killed at random moments, again and again, and ends as if nothing had happened.

The same training (`ckptmgr.cli.digits`) runs once undisturbed and once with kills. Then both are restored from disk and
compared: every weight, moment, loss and random state must have the same bytes.
"""

import hashlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from ckptmgr import CheckpointManager, Plan, save
from ckptmgr.cli.digits import RETENTION, SAVE_EVERY
from ckptmgr.cli.killing import Life, Training, lives, undisturbed
from ckptmgr.cli.output import AsJSON, counted, emit, emit_json, emit_table, metrics, plan_json, plan_rows, size
from ckptmgr.errors import MissingDependencyError

Keep = Annotated[Path | None, typer.Option(metavar="DIR", help="Leave both runs in this folder.", show_default=False)]
Kills = Annotated[int, typer.Option(min=1, max=20, help="How often to kill it, at least.")]
Steps = Annotated[int, typer.Option(min=200, help="Training steps.")]


class Outcome(NamedTuple):
    """What came of the killed run, beside the undisturbed one."""

    lives: list[Life]
    plan: Plan
    metrics: Mapping[str, float]
    digests: dict[str, tuple[str, str]]  # of each part of the state: undisturbed, killed

    @property
    def is_identical(self) -> bool:
        """Whether both runs ended with the same bytes."""
        return all(first == second for first, second in self.digests.values())

    @property
    def is_whole(self) -> bool:
        """Whether every committed step was whole after every kill."""
        return not any(life.damaged for life in self.lives)


def demo(keep: Keep = None, kills: Kills = 6, steps: Steps = 1000, as_json: AsJSON = False) -> None:
    """Kill a training run again and again, and lose nothing.

    Trains once undisturbed and once with kills, in two new runs: both end with the same bytes. Takes about half a minute.
    """
    begun = time.monotonic()
    with _folder(keep) as folder:
        outcome = _demonstrate(folder, kills, steps, is_quiet=as_json)
    seconds = round(time.monotonic() - begun, 1)
    if as_json:
        emit_json(_document(outcome, seconds))
    else:
        _emit(outcome)
        emit(f"{seconds} s" + (f"; both runs are in {keep}" if keep else ""))
    if not (outcome.is_identical and outcome.is_whole):
        raise typer.Exit(1)


def _demonstrate(folder: Path, kills: int, steps: int, *, is_quiet: bool) -> Outcome:
    data = folder / "digits.safetensors"
    save(data, images())
    whole, killed = (Training(folder / name, data, steps) for name in ("undisturbed", "killed"))
    if not is_quiet:
        emit(f"Handwritten digits, two hidden layers, Adam: {steps} steps, a save every {SAVE_EVERY}.")
        emit(f"Once undisturbed; once killed with SIGKILL {kills} times or more, then resumed each time.")
        emit()
    save_s = undisturbed(whole)
    lived = []
    for life in lives(killed, kills, save_s):
        lived.append(life)
        if not is_quiet:
            emit(_told(len(lived), life))
    with CheckpointManager(whole.folder) as first, CheckpointManager(killed.folder, retention=RETENTION) as second:
        expected, survived = first.restore(), second.restore()
        assert survived.info is not None
        return Outcome(lived, second.plan(), survived.info.metrics, compared(expected.state, survived.state))


def images() -> dict[str, np.ndarray]:
    """The handwritten digits that come with scikit-learn.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise MissingDependencyError("the demo learns scikit-learn's digits: pip install 'ckptmgr[demo]'") from error
    digits = load_digits()
    return {"images": (digits.data / 16).astype(np.float32), "labels": digits.target.astype(np.int64)}


def compared(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The sha256 of each part of two states."""
    return {part: (digest(first.get(part)), digest(second.get(part))) for part in sorted({*first, *second})}


def digest(value: Any) -> str:
    """The sha256 of every byte of a tree of arrays, numbers and random generators."""
    found = hashlib.sha256()
    for leaf in _leaves(value):
        found.update(leaf)
    return found.hexdigest()


def _leaves(value: Any) -> Iterator[bytes]:
    if isinstance(value, Mapping):
        for key in sorted(value):
            yield f"{key}:".encode()
            yield from _leaves(value[key])
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode()
        yield value.tobytes()
    else:
        yield repr(value.bit_generator.state if isinstance(value, np.random.Generator) else value).encode()


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="ckptmgr-demo-") as folder:
            yield Path(folder)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if any(keep.iterdir()):
        raise typer.BadParameter(f"{str(keep)!r} is not empty", param_hint="--keep")
    yield keep


def _told(number: int, life: Life) -> str:
    where = "inside a save" if life.claims else "while tidying up" if life.files else "between saves"
    end = f"killed {where}" if life.was_killed else "ran to the end"
    swept = (
        f"; swept {counted(life.claims, 'claim')}, {counted(life.files, 'file')}, {size(life.nbytes)}"
        if life.claims + life.files
        else ""
    )
    found = f"{counted(life.steps, 'step')}, {f'{life.damaged} DAMAGED' if life.damaged else 'all whole'}, newest {life.newest}"
    return f"life {number}: began at step {life.began}, {end}: {found}{swept}"


def _emit(outcome: Outcome) -> None:
    inside = sum(life.claims > 0 for life in outcome.lives)
    killed = sum(life.was_killed for life in outcome.lives)
    emit()
    emit(f"Killed {killed} times, {inside} of them inside a save. What survived, and why retention kept it:")
    emit()
    emit_table(("", "step", "saved", "size", "why"), plan_rows(outcome.plan), numbers=("step", "size"))
    emit()
    emit(f"The last step: {metrics(outcome.metrics)}. Its state and that of the undisturbed run (sha256):")
    emit()
    rows = [(part, *pair, "identical" if pair[0] == pair[1] else "DIFFERENT") for part, pair in outcome.digests.items()]
    emit_table(("part", "undisturbed", "killed", ""), [(part, a[:16], b[:16], same) for part, a, b, same in rows])
    emit()
    emit("Bit for bit the same." if outcome.is_identical else "The runs differ: this is a bug in ckptmgr.")


def _document(outcome: Outcome, seconds: float) -> dict[str, Any]:
    return {
        "identical": outcome.is_identical,
        "seconds": seconds,
        "lives": [asdict(life) for life in outcome.lives],
        "metrics": dict(outcome.metrics),
        "plan": plan_json(outcome.plan),
        "sha256": {part: {"undisturbed": a, "killed": b} for part, (a, b) in outcome.digests.items()},
    }
