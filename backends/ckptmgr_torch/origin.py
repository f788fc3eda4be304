"""Which file something is wrong with, and the errors that say so."""

from dataclasses import dataclass

from ckptmgr.errors import CorruptCheckpointError, UnsafeCheckpointError


class Damaged(Exception):
    """Nobody's pickler writes such bytes; `Origin` says where they are."""


class Refused(Exception):
    """What would need code, or values that this library does not make."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The file that bytes come from: its plain name, and where it is for a person."""

    name: str
    location: str

    def corrupt(self, problem: str, tensor: str | None = None) -> CorruptCheckpointError:
        """The error that says what is wrong with this file, and with which record or tensor in it."""
        text = self._message("is not a valid PyTorch checkpoint", problem, tensor)
        return CorruptCheckpointError(text, file=self.name, tensor=tensor)

    def unsafe(self, problem: str, tensor: str | None = None) -> UnsafeCheckpointError:
        """The error that says what in this file leads out of it, or to code."""
        return UnsafeCheckpointError(self._message("is refused", problem, tensor), file=self.name)

    def _message(self, verdict: str, problem: str, tensor: str | None) -> str:
        subject = "" if tensor is None else f"{tensor!r}: "
        return f"{self.location!r} {verdict}: {subject}{problem}"
