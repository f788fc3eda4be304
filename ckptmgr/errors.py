"""Every error ckptmgr raises by itself, grouped by what a caller would do about it.

::

    CheckpointError
    ├── StepNotFoundError       (LookupError)      pick another step
    ├── StepExistsError         (FileExistsError)  overwrite=True or another step
    ├── CorruptCheckpointError  (ValueError)       fall back to an older step
    ├── StateMismatchError      (ValueError)       fix `into`; lists every difference at once
    ├── FormatVersionError      (ValueError)       written by a newer ckptmgr: upgrade, do not fall back
    ├── UnsupportedTensorError  (TypeError)        other backend or dtype
    ├── UnsupportedLeafError    (TypeError)        names the path in the state tree
    ├── BackendNotFoundError    (LookupError)      lists the backends found
    ├── MissingDependencyError  (ImportError)      says the pip line
    ├── UnsafeCheckpointError   (ValueError)       refused: links, traversal, code; nothing was read
    ├── CommitUnknownError      (OSError)          the store did not answer; look again before retrying
    ├── SaveError               (RuntimeError)     nothing was committed
    └── MigrationError          (RuntimeError)     some steps were not migrated: migrate again; `report` lists them

Errors of the storage itself (`OSError`: no space, no permission, ...) pass through unchanged.
"""

from collections.abc import Sequence
from typing import Any


class CheckpointError(Exception):
    """Base of all errors of ckptmgr. Facts given by keyword become attributes."""

    def __init__(self, message: str = "", **facts: Any) -> None:
        super().__init__(message)
        for name, value in facts.items():
            setattr(self, name, value)


class StepNotFoundError(CheckpointError, LookupError):
    """No committed step of that number (or none at all)."""

    step: int | None = None
    committed: Sequence[int] = ()


class StepExistsError(CheckpointError, FileExistsError):
    """The step is committed already, and `overwrite` was not asked for."""

    step: int | None = None


class CorruptCheckpointError(CheckpointError, ValueError):
    """Stored bytes are not what was written, or not of the format they claim to be."""

    step: int | None = None
    file: str | None = None
    tensor: str | None = None


class StateMismatchError(CheckpointError, ValueError):
    """What `into` wants and what the checkpoint holds differ; `report` lists every difference."""

    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    report: Any = None


class FormatVersionError(CheckpointError, ValueError):
    """Written by a newer version of the format than this ckptmgr reads."""

    found: int | None = None
    supported: int | None = None


class UnsupportedTensorError(CheckpointError, TypeError):
    """The format has no place for this tensor's dtype, shape or name."""

    tensor: str | None = None


class UnsupportedLeafError(CheckpointError, TypeError):
    """A value in the state tree cannot be stored; nothing is ever pickled."""

    path: str | None = None


class BackendNotFoundError(CheckpointError, LookupError):
    """No installed backend of that name, or none that recognizes the file."""

    available: Sequence[str] = ()


class MissingDependencyError(CheckpointError, ImportError):
    """An optional package is needed; the message gives the pip line."""


class UnsafeCheckpointError(CheckpointError, ValueError):
    """Refused before it was read: a link, a path outside the checkpoint, code."""

    file: str | None = None


class CommitUnknownError(CheckpointError, OSError):
    """The store gave no definite answer: the step may or may not be committed."""

    step: int | None = None


class SaveError(CheckpointError, RuntimeError):
    """The save was not committed and never will be."""

    step: int | None = None


class MigrationError(CheckpointError, RuntimeError):
    """Some steps were not migrated, and the others are; ``report`` lists both."""

    report: Any = None


def shown(names: Sequence[object], limit: int = 5) -> str:
    """``names`` for a message: the first few by `repr`, then how many more there are."""
    more = len(names) - limit
    text = ", ".join(repr(name) for name in names[:limit])
    return f"{text}, and {more} more" if more > 0 else text
