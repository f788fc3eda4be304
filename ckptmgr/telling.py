"""Errors of other threads on their way to a caller: what is told together, and what they must not keep."""

import traceback
from collections.abc import Sequence


def raise_together(failures: Sequence[BaseException]) -> None:
    """Raises the first of them, with a note of each other; nothing if there is none."""
    failures = list(failures)
    try:
        for later in failures[1:]:
            failures[0].add_note(f"after it, another one failed: {shown_whole(later)}")
        if failures:
            raise failures[0]
    finally:
        del failures  # an error that refers to itself would keep what its callers had until garbage is looked for


def let_go(error: BaseException) -> None:
    """Clears what its frames held, and those of the errors that it came from: who keeps an error must not keep the state."""
    errors: list[BaseException | None] = [error]
    for known in errors:
        if known is not None:
            traceback.clear_frames(known.__traceback__)
            causes = (known.__cause__, known.__context__, *getattr(known, "exceptions", ()))
            errors += [cause for cause in causes if cause not in errors]


def shown_whole(error: BaseException) -> str:
    """An error with its notes, on one line."""
    return "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
