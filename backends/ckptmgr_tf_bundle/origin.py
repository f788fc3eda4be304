"""Which file of a checkpoint something is wrong with, and the error that says so."""

from dataclasses import dataclass

from ckptmgr.errors import CorruptCheckpointError


@dataclass(frozen=True, slots=True)
class Origin:
    """The file that bytes come from: its plain name, and where it is for a person."""

    name: str
    location: str

    def corrupt(self, problem: str, tensor: str | None = None) -> CorruptCheckpointError:
        """The error that says what is wrong with this file, and with which of its tensors."""
        subject = "" if tensor is None else f"tensor {tensor!r}: "
        message = f"{self.location!r} is not a valid TensorFlow checkpoint: {subject}{problem}"
        return CorruptCheckpointError(message, file=self.name, tensor=tensor)
