"""Which file something is wrong with, and the errors that say so."""

from dataclasses import dataclass
from typing import ClassVar

from ckptmgr.errors import CorruptCheckpointError, UnsafeCheckpointError


@dataclass(frozen=True, slots=True)
class FileOrigin:
    """The file that bytes come from: its plain name, and where it is for a person. A backend derives its own, with its form."""

    name: str
    location: str
    form: ClassVar[str]  # what the file is not when it is damaged, such as "a valid .npz file"
    subject: ClassVar[str] = ""  # goes before the name of what is wrong in it

    def corrupt(self, problem: str, tensor: str | None = None) -> CorruptCheckpointError:
        """The error that says what is wrong with this file, and with which tensor, member or object in it."""
        text = self._message(f"is not {self.form}", problem, tensor)
        return CorruptCheckpointError(text, file=self.name, tensor=tensor)

    def unsafe(self, problem: str, tensor: str | None = None) -> UnsafeCheckpointError:
        """The error that says what in this file leads out of it, or to code."""
        return UnsafeCheckpointError(self._message("is refused", problem, tensor), file=self.name)

    def _message(self, verdict: str, problem: str, tensor: str | None) -> str:
        subject = "" if tensor is None else f"{self.subject}{tensor!r}: "
        return f"{self.location!r} {verdict}: {subject}{problem}"
