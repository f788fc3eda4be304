"""The least that a store can be: what a layout is written into must not need more."""

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np

from ckptmgr.storage import Buffer, Stored


class ForwardStore:
    """A store that is only a pipe: it takes a file's windows in order, once, and can do nothing else."""

    window_nbytes = 1 << 16
    workers = 1
    url = "forward://"
    is_weak = True
    has_remove = False

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def put(self, key: str, windows: Iterable[Sequence[Buffer]], nbytes: int) -> Stored:
        """Keeps what the windows hold at the moment they are given."""
        self.files[key] = b"".join(memoryview(_bytes(buffer)).tobytes() for window in windows for buffer in window)
        return Stored(nbytes)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"writing a layout must not need {name!r} of the store")


def _bytes(buffer: Buffer) -> Any:
    return buffer.reshape(-1).view(np.uint8) if isinstance(buffer, np.ndarray) else buffer
