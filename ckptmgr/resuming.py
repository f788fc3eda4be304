"""How a run resumes from the newest good step, wherever it is: what must not pass for a good start."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ckptmgr.checkpoint import Restored
from ckptmgr.errors import CorruptCheckpointError, StepNotFoundError, shown
from ckptmgr.finding import Skipped


def with_skipped(result: Restored, skipped: Sequence[Skipped]) -> Restored:
    """The result with what was passed over for it in its report.

    Raises:
        CorruptCheckpointError: what is missing in an older step may have been filled by halves from a newer one. Happens only
            without ``strict``; it must not pass for the caller's own values.
    """
    unfilled = [*result.report.missing, *(name for name, _, _ in result.report.mismatched)]
    if unfilled and (newer := [entry for entry in skipped if entry.step != result.step]):
        raise CorruptCheckpointError(
            f"step {newer[0].step} is damaged, and the older step {result.step} lacks "
            f"{shown(unfilled)}: restore an explicit step into fresh arrays",
            step=newer[0].step,
        )
    return result._replace(report=replace(result.report, skipped=tuple(skipped)))


def restored_or_initial(restore: Callable[[Any], Restored], init: Any) -> tuple[int, Any]:
    """What ``restore`` makes of ``init``, with the step; ``(0, init)`` if there is no step. See `restore_or_initialize`."""
    # A module can be called too, but is a state; its class makes one.
    is_function = callable(init) and (isinstance(init, type) or not hasattr(init, "state_dict"))
    state = init() if is_function else init
    try:
        result = restore(state)
    except StepNotFoundError as error:
        if error.step is not None:
            raise  # it was deleted while it was read, and the state is no fresh one any more
        return 0, state
    return result.step or 0, result.state
