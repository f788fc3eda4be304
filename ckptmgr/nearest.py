"""Where the nearest good copy of a step is, in two tiers: looked up each time, so it is never stale."""

import logging
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

from ckptmgr.due import Key, key
from ckptmgr.errors import (
    CheckpointError,
    CorruptCheckpointError,
    FormatVersionError,
    StateMismatchError,
    StepNotFoundError,
    UnsafeCheckpointError,
    shown,
)
from ckptmgr.finding import Run, Skipped, Steps
from ckptmgr.manager import CheckpointManager
from ckptmgr.naming import checked_step
from ckptmgr.step import StepInfo

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Copies(NamedTuple):
    """A step, and the tiers that have it, the near one first."""

    info: StepInfo
    tiers: tuple[CheckpointManager, ...]


class Nearest:
    """The steps of two tiers together. ``seen`` gets the committed steps of the remote one each time it is looked at."""

    def __init__(self, local: CheckpointManager, remote: CheckpointManager, seen: Callable[[list[StepInfo]], object]) -> None:
        self.local, self.remote = local, remote
        self._near, self._far = (Run(tier.folder, tier.naming, tier.backend) for tier in (local, remote))
        self._seen = seen

    def steps(self) -> list[StepInfo]:
        """All steps in order of their saves, each once, as the nearest tier has it."""
        return [each.info for each in self._copies(*self._look())]

    def _look(self) -> tuple[Steps, Steps | None]:
        """What both tiers have; None for the remote one if it cannot be reached and the local one is not empty."""
        near = self._near.steps()
        try:
            far = self._far.steps()
        except OSError as error:
            if not near.known:
                raise
            where = self.remote.folder.location()
            text = f"{where!r} cannot be reached, and only the local tier's steps are known: {error}"
            warnings.warn(text, RuntimeWarning, stacklevel=3)
            return near, None
        self._seen([known.info for known in far.committed])
        return near, far

    def _copies(self, near: Steps, far: Steps | None) -> list[Copies]:
        """Every step once, oldest first; of steps with one number, the one saved last."""
        found: dict[Key, Copies] = {}
        for tier, steps in ((self.local, near), (self.remote, far)):
            for known in steps.known if steps else ():
                info, tiers = found.get(key(known.info), Copies(known.info, ()))
                found[key(known.info)] = Copies(info, (*tiers, tier))
        newest: dict[int, Copies] = {}
        for each in sorted(found.values(), key=lambda each: each.info.order):
            newest.pop(each.info.step, None)
            newest[each.info.step] = each
        return [*newest.values()]

    def find(self, step: int) -> Copies:
        """A step, and who has it. Raises StepNotFoundError."""
        found = [each for each in self._copies(*self._look()) if each.info.step == step]
        if not found:
            raise self.not_found(step)
        return found[0]

    def use(self, step: int | None, use: Callable[[CheckpointManager, StepInfo], T]) -> tuple[T, list[Skipped]]:
        """What ``use`` makes of the nearest good copy of a step, or of the newest that has one; and what was passed over."""
        wanted = None if step is None else checked_step(step)
        skipped: list[Skipped] = []
        passed: set[Hashable] = set()
        gone: StepNotFoundError | None = None
        while True:
            near, far = self._look()
            for entry in (*near.unreadable, *(far.unreadable if far else ())):
                if wanted in (None, entry.step) and entry.version not in passed:
                    passed.add(entry.version)
                    _skip(skipped, entry.step, entry.error)
            left = [each for each in self._copies(near, far) if wanted in (None, each.info.step) and key(each.info) not in passed]
            if not left:
                break
            passed.add(key(left[-1].info))
            for tier in left[-1].tiers:
                try:
                    return self._tried(tier, left[-1], use, skipped), skipped
                except StepNotFoundError as error:
                    gone = error
                    logger.info("step %d is gone from %r: %s", left[-1].info.step, tier.folder.location(), error)
                except (CorruptCheckpointError, UnsafeCheckpointError) as error:
                    _skip(skipped, left[-1].info.step, error)
        if skipped:
            text = f"no copy of {'a step' if wanted is None else f'step {wanted}'} passes its checks"
            raise CorruptCheckpointError(f"{text}; the first: {skipped[0].error}", step=skipped[0].step) from skipped[0].error
        raise gone or self.not_found(wanted)

    def _tried(
        self,
        tier: CheckpointManager,
        copies: Copies,
        use: Callable[[CheckpointManager, StepInfo], T],
        skipped: Sequence[Skipped],
    ) -> T:
        """What ``use`` makes of a copy; that it cannot be read is damage, where another tier has one too."""
        step = copies.info.step
        try:
            return use(tier, copies.info)
        except StateMismatchError as error:
            if skipped:
                error.add_note(f"step {skipped[-1].step} was tried first and is damaged: arrays may hold some of its bytes")
            raise
        except CheckpointError:
            raise
        except OSError as error:
            if tier is copies.tiers[-1]:
                raise
            raise CorruptCheckpointError(
                f"step {step} in {tier.folder.location()!r} cannot be read: {error}", step=step
            ) from error

    def not_found(self, step: int | None) -> StepNotFoundError:
        """The error for a step that neither tier has; None: for no step at all."""
        committed = [each.info.step for each in self._copies(*self._look())]
        what = "no step is" if step is None else f"step {step} is not"
        where = f"{self.local.folder.location()!r} or {self.remote.folder.location()!r}"
        text = f"{what} committed in {where} (committed: {shown(committed[::-1]) or 'none'})"
        return StepNotFoundError(text, step=step, committed=committed)


def _skip(skipped: list[Skipped], step: int, error: CheckpointError) -> None:
    if isinstance(error, FormatVersionError):  # no reason to fall back
        raise error
    warnings.warn(f"a copy of step {step} is skipped: {error}", RuntimeWarning, stacklevel=4)
    skipped.append(Skipped(step, error))
