"""A process of its own in which h5py reads one file, and what is said between it and us.

The law: nothing that the file does to HDF5 reaches this process. The other one may crash, hang, take memory or lie; what
it gets is bytes of this one file, and what it says is bounded and checked.
"""

import importlib.util
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ckptmgr.errors import CorruptCheckpointError, MissingDependencyError
from ckptmgr_hdf5.blocks import Reader
from ckptmgr_hdf5.faults import Damaged
from ckptmgr_hdf5.origin import Origin

# The package without its face: what h5py needs is all that is imported. Folders are those of h5py and numpy.
PROGRAM = """
import sys, types
package = types.ModuleType("ckptmgr_hdf5")
package.__path__ = [sys.argv[1]]
sys.modules["ckptmgr_hdf5"] = package
sys.path += sys.argv[2:]
from ckptmgr_hdf5 import child
child.main()
"""
_START_S = 60.0  # to import h5py, from a slow disk too
_FRAME = struct.Struct("<II")
_MAX_TEXT = 4 << 20
_MAX_FETCH = 8 << 20
_INHERITED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
_ENVIRONMENT = {"HDF5_PLUGIN_PRELOAD": "::", "MALLOC_ARENA_MAX": "1"}  # "::" is: load no plugin
_ENVIRONMENT |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Answer(NamedTuple):
    """A frame, its data (none if it went to a buffer of ours), and whether it is the last one for its request."""

    frame: dict[str, Any]
    data: bytearray
    is_last: bool


class Process:
    """The process, started when it is first needed, and again after it was lost. Any thread may use it, one at a time.

    ``limits`` are what it is told to keep (see `ckptmgr_hdf5.vetting.Limits`). It may stay silent for ``timeout_s``.
    """

    def __init__(self, reader: Reader, origin: Origin, limits: Mapping[str, int], timeout_s: float) -> None:
        self._reader = reader
        self._origin = origin
        self._limits = limits
        self._timeout_s = timeout_s
        self._lock = threading.RLock()
        self._started: _Started | None = None
        self._is_answered = True
        self._place: str | None = None
        self._end: Callable[[], object] = _nothing

    @contextmanager
    def conversation(self) -> Iterator[None]:
        """Nobody else is heard meanwhile. If it ends before the answer did, the process is ended."""
        with self._lock:
            try:
                yield
            finally:
                if not self._is_answered:
                    self.close()

    def ask(self, what: str, path: str | None = None, **words: Any) -> None:
        """Sends a request, and starts the process if there is none.

        Raises:
            MissingDependencyError: h5py is not installed, or cannot be imported.
            OSError: no process can be started.
        """
        is_new = self._started is None or self._started.pid != os.getpid()
        if is_new:
            self._start()
        self._is_answered = False
        self._place = path
        request = {"ask": what, "path": path, **words}
        if not self._send(request) and not is_new:
            self._start_again()  # it was ended while it had nothing to do, as by a system that is short of memory
            self._send(request)

    def answer(self, most: int, into: np.ndarray[Any, Any] | None = None) -> Answer:
        """The next frame, with at most that many bytes of data; ``into``, an array of bytes, is filled whole instead.

        Raises:
            CorruptCheckpointError: the file cannot be read, or the process was lost over it.
            UnsafeCheckpointError: the file leads to another one.
            OSError: as the storage gave it.
        """
        left_s = self._timeout_s
        while True:
            start_s = time.monotonic()
            frame, nbytes = self._frame(left_s)
            left_s -= time.monotonic() - start_s
            if "want" in frame:
                self._fetch(frame["want"])
                continue
            if "error" in frame:
                self._is_answered = True
                raise self._told(frame)
            if nbytes > most if into is None else nbytes != into.nbytes:
                raise self._lost(f"it gave {nbytes} bytes")
            data = bytearray(nbytes if into is None else 0)
            self._receive(data if into is None else into)
            self._is_answered = "end" in frame
            return Answer(frame, data, self._is_answered)

    def nonsense(self, path: str | None = None) -> CorruptCheckpointError:
        """The error for an answer that says nothing that it could."""
        return self._lost("it answered what it was not asked", path)

    def close(self) -> None:
        """Ends the process. The next request starts another one."""
        with self._lock:
            self._end()
            self._started, self._is_answered = None, True

    def _start(self) -> None:
        self._started = _Started()
        self._end = weakref.finalize(self, self._started.end)
        try:
            self._started.channel.settimeout(_START_S)
            text_nbytes, _ = _FRAME.unpack(_exactly(self._started.channel, _FRAME.size))
            _exactly(self._started.channel, min(text_nbytes, _MAX_TEXT))
        except (OSError, EOFError) as error:
            self.close()
            raise MissingDependencyError("h5py is installed, but a process that imports it does not start") from error
        self._send(dict(self._limits))

    def _start_again(self) -> None:
        self.close()
        self._start()
        self._is_answered = False

    def _send(self, frame: dict[str, Any], data: bytes = b"") -> bool:
        """Whether the process could still be told. If it has ended, what it said before is yet to be read."""
        text = json.dumps(frame).encode()
        try:
            channel = self._channel(self._timeout_s)
            channel.sendall(_FRAME.pack(len(text), len(data)) + text)
            if data:  # to send nothing would fail too, if the process has heard all and is lost over it
                channel.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        except OSError as error:
            raise self._lost("it does not listen") from error
        return True

    def _frame(self, timeout_s: float) -> tuple[dict[str, Any], int]:
        """The next frame, and the size of the data behind it."""
        head = bytearray(_FRAME.size)
        self._receive(head, timeout_s)
        text_nbytes, nbytes = _FRAME.unpack(head)
        if text_nbytes > _MAX_TEXT:
            raise self._lost(f"it said {text_nbytes} bytes at once")
        text = bytearray(text_nbytes)
        self._receive(text)
        try:
            frame = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._lost("it said what is no JSON") from error
        if not isinstance(frame, dict):
            raise self.nonsense()
        return frame, nbytes

    def _receive(self, buffer: bytearray | np.ndarray[Any, Any], timeout_s: float | None = None) -> None:
        view = memoryview(buffer) if isinstance(buffer, bytearray) else buffer.data
        try:
            channel = self._channel(self._timeout_s if timeout_s is None else timeout_s)
            while view:
                count = channel.recv_into(view)
                if not count:
                    raise self._lost(self._ending())
                view = view[count:]
        except TimeoutError as error:
            raise self._lost(f"it gave no answer for {self._timeout_s:g} s") from error
        except ConnectionResetError as error:
            raise self._lost(self._ending()) from error
        except OSError as error:
            raise self._lost(f"it is gone ({error})") from error

    def _channel(self, timeout_s: float) -> socket.socket:
        assert self._started is not None
        self._started.channel.settimeout(max(timeout_s, 0.001))
        return self._started.channel

    def _fetch(self, want: object) -> None:
        """Gives the process bytes of the file."""
        if not (isinstance(want, list) and len(want) == 2 and all(type(number) is int for number in want)):
            raise self.nonsense()
        offset, nbytes = want
        if not 0 <= nbytes <= _MAX_FETCH:
            raise self._lost(f"it wants {nbytes} bytes")
        try:
            data = self._reader.read(offset, nbytes)
        except Damaged as error:
            raise self._lost(str(error)) from error
        self._send({}, data)

    def _told(self, frame: dict[str, Any]) -> Exception:
        """What the process says of the file."""
        problem, path = str(frame["error"])[:1000], frame.get("path")
        place = path[:1000] if isinstance(path, str) else self._place
        return self._origin.unsafe(problem, place) if frame.get("is_unsafe") is True else self._origin.corrupt(problem, place)

    def _lost(self, problem: str, path: str | None = None) -> CorruptCheckpointError:
        self._is_answered = False
        return self._origin.corrupt(f"h5py could not read it: {problem}", path or self._place)

    def _ending(self) -> str:
        """How the process ended, now that it has."""
        assert self._started is not None
        code = self._started.wait()
        if code is None:
            return "it said no more"
        if code == -signal.SIGPROF:
            return "it took too long"
        return f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"its process ended with status {code}"


class _Started:
    """One running process, and our end of the line to it."""

    def __init__(self) -> None:
        folders = _folders()
        self.pid = os.getpid()
        self.channel, theirs = socket.socketpair()
        with theirs:
            environment = {name: os.environ[name] for name in _INHERITED if name in os.environ} | _ENVIRONMENT
            command = [sys.executable, "-I", "-S", "-c", PROGRAM, str(Path(__file__).parent), *folders]
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=environment,
                start_new_session=True,  # an interrupt from the keyboard is ours
            )

    def wait(self) -> int | None:
        """The exit status of a process that has closed its end of the line; None if it does not end nevertheless."""
        try:
            return self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Ends the process, unless this is a fork of the one that started it."""
        self.channel.close()
        if self.pid == os.getpid():
            self._process.kill()
            self._process.wait()


def _nothing() -> None:
    """What ends no process."""


def _exactly(channel: socket.socket, nbytes: int) -> bytes:
    data = channel.recv(nbytes, socket.MSG_WAITALL)
    if len(data) < nbytes:
        raise EOFError("the process ended")
    return data


def _folders() -> list[str]:
    """Where h5py and numpy are, without importing h5py."""
    found = importlib.util.find_spec("h5py")
    if found is None or found.origin is None:
        raise MissingDependencyError("this HDF5 file can only be read with h5py: pip install 'ckptmgr[hdf5]'")
    return list(dict.fromkeys(str(Path(origin).parents[1]) for origin in (found.origin, np.__file__)))
