"""Two tiers for tests: managers over any store, and stores that wait, are down, or count what they are sent."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from stores import MemoryStore, WrappedStore

from ckptmgr import CheckpointManager, TieredManager
from ckptmgr.storage import Folder

PATIENCE_S = 60


def tier(store: Any, **options: Any) -> CheckpointManager:
    """A manager of a run in any store."""
    with mock.patch("ckptmgr.manager.open_folder", return_value=Folder(store)):
        return CheckpointManager("run", **options)


class FarStore(WrappedStore):
    """A store that can be `held` at its puts, raises whatever it is asked while it `is_down`, and tells what it was asked."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.go, self.begun = threading.Event(), threading.Event()
        self.go.set()
        self.is_down = False
        self.names: list[str] = []

    def operate(self, name: str, call: Callable[[], Any]) -> Any:
        self.names.append(name)
        if name == "put":
            self.begun.set()
            assert self.go.wait(PATIENCE_S)
        if self.is_down:
            raise OSError(113, "No route to host")
        return call()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no put goes on."""
        self.begun.clear()
        self.go.clear()
        try:
            yield
        finally:
            self.go.set()


def steps(manager: Any) -> list[int]:
    return [info.step for info in manager.steps()]


class Tiers:
    """A near tier on disk and a far one in memory, and what stands for them after a restart or on a new machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.far = FarStore(MemoryStore())
        self.local_options: dict[str, Any] = {}
        self.remote_options: dict[str, Any] = {}
        self.options: dict[str, Any] = {}
        self._started: weakref.WeakSet[TieredManager] = weakref.WeakSet()

    def start(self, folder: str = "near", **options: Any) -> TieredManager:
        local = CheckpointManager(self.folder / folder, **self.local_options)
        manager = TieredManager(local, tier(self.far, **self.remote_options), **{**self.options, **options})
        self._started.add(manager)
        return manager

    def end(self) -> None:
        """Leaves no thread to the tests that come after."""
        while self._started:
            self._started.pop()._uploader.end()
        gc.collect()  # the thread of a manager that nobody has any more ends by itself
        for thread in threading.enumerate():
            if thread.name == "ckptmgr-copies":
                thread.join(60)
                assert not thread.is_alive()

    def damage(self, manager: TieredManager, step: int, name: str = "model.safetensors") -> None:
        file = Path(manager.local.path(step)) / name
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)


def restored(manager: Any, step: int | None = None, **options: Any) -> int:
    found = manager.restore(step, **options).state
    assert (found["model"]["w"] == found["epoch"]).all()
    return found["epoch"]
