"""Which file something is wrong with, and the errors that say so."""

from dataclasses import dataclass

from ckptmgr.errors import CorruptCheckpointError, UnsafeCheckpointError


@dataclass(frozen=True, slots=True)
class Origin:
    """The file that bytes come from: its plain name, and where it is for a person."""

    name: str
    location: str

    def corrupt(self, problem: str, tensor: str | None = None) -> CorruptCheckpointError:
        """The error that says what is wrong with this file, and with which member of it."""
        subject = "" if tensor is None else f"{tensor!r}: "
        return CorruptCheckpointError(
            f"{self.location!r} is not a valid .npz file: {subject}{problem}", file=self.name, tensor=tensor
        )

    def unsafe(self, problem: str, tensor: str | None = None) -> UnsafeCheckpointError:
        """The error that says what in this file leads out of it, or to code."""
        subject = "" if tensor is None else f"{tensor!r}: "
        return UnsafeCheckpointError(f"{self.location!r} is refused: {subject}{problem}", file=self.name)
