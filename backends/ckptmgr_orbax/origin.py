"""Which file something is wrong with, and the errors that say so."""

from dataclasses import dataclass

from ckptmgr.errors import CorruptCheckpointError, UnsafeCheckpointError


@dataclass(frozen=True, slots=True)
class Origin:
    """The file or folder that something comes from: its plain name, and where it is for a person."""

    name: str
    location: str

    def corrupt(self, problem: str, tensor: str | None = None) -> CorruptCheckpointError:
        """The error that says what is wrong with it, and with which tensor in it."""
        subject = "" if tensor is None else f"{tensor!r}: "
        text = f"{self.location!r} is not a valid Orbax checkpoint: {subject}{problem}"
        return CorruptCheckpointError(text, file=self.name, tensor=tensor)

    def unsafe(self, problem: str) -> UnsafeCheckpointError:
        """The error that says what leads out of it."""
        return UnsafeCheckpointError(f"{self.location!r} is refused: {problem}", file=self.name)
