"""The process with h5py may crash, hang, grow, lie or be killed: this one goes on, with one of our errors."""

import importlib.util
import os
import re
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdf5_workers import ORIGINAL, before, instead, worker, written
from syscalls import in_child

from ckptmgr.backend import Box
from ckptmgr.errors import CorruptCheckpointError, MissingDependencyError
from ckptmgr_hdf5 import process
from ckptmgr_hdf5.blocks import Reader
from ckptmgr_hdf5.origin import Origin
from ckptmgr_hdf5.worker import Worker

COUNTED = np.arange(600, dtype=np.float32).reshape(20, 30)
WHOLE = Box.whole((20, 30))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path / "m.h5", lambda file: file.create_dataset("x", data=COUNTED, chunks=(7, 11)))


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """All processes that are started, in order."""
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *words: Any, **options: Any) -> None:
            super().__init__(*words, **options)
            started.append(self)

    monkeypatch.setattr(process.subprocess, "Popen", Noted)
    return started


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            "import os, signal; child.File.tree = lambda *_: os.kill(os.getpid(), signal.SIGSEGV)",
            "its process was ended by SIGSEGV",
        ),
        ("import os; child.File.tree = lambda *_: os._exit(3)", "its process ended with status 3"),
        ("child.File.tree = lambda *_: 1 / 0", "its process ended with status 1"),
        ("child.File.tree = lambda *_: bytearray(1 << 40)", "h5py gave MemoryError"),
        ("child._STEP_S = 0.2; child.File.tree = lambda *_: [0 for _ in iter(int, 1)]", "it took too long"),
    ],
    ids=["crash", "exit", "bug", "memory", "loop"],
)
def test_what_happens_to_the_process_is_told(path: Path, monkeypatch: pytest.MonkeyPatch, line: str, problem: str) -> None:
    monkeypatch.setattr(process, "PROGRAM", before(line))

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match=problem) as caught:
        asked.tree()

    assert caught.value.file == "m.h5"


def test_a_loop_inside_one_object_is_ended_within_2_seconds_of_computing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PROGRAM", before("child.vetting.described = lambda *_: [0 for _ in iter(int, 1)]"))
    spent_s = os.times().children_user

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match="it took too long"):
        asked.tree()

    assert os.times().children_user - spent_s < 2.5


def test_silence_ends_after_the_time_that_was_given(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PROGRAM", before("import time; child.File.tree = lambda *_: time.sleep(60)"))
    start_s = time.monotonic()

    with worker(path, timeout_s=0.3) as asked, pytest.raises(CorruptCheckpointError, match=r"it gave no answer for 0\.3 s"):
        asked.tree()

    assert time.monotonic() - start_s < 10


def test_asking_for_the_file_again_and_again_is_silence_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PROGRAM", instead('while True: asker.fetch(0, bytearray(8)); __import__("time").sleep(0.01)'))

    with worker(path, timeout_s=0.3) as asked, pytest.raises(CorruptCheckpointError, match="it gave no answer"):
        asked.tree()


@pytest.mark.parametrize(
    "line",
    [
        "asker.send([])",
        'asker.send({"entries": [GROUP, ["dataset", 0, "x", "raw", "|u1", [2], 0, 2, "contiguous", "8"]], "end": True})',
        'asker.send({"end": True})',
        'asker.send({"entries": [], "end": True})',
        'asker.send({"entries": [["dataset", 0, "x"]], "end": True})',
        'asker.send({"entries": [GROUP, ["group", 1, "x"]], "end": True})',
        'asker.send({"entries": [GROUP, ["group", 0, "a/b"]], "end": True})',
        'asker.send({"entries": [GROUP, ["attribute", "x", "raw", "|u1", [9], 9]], "end": True})',
        'asker.send({"entries": [GROUP, ["dataset", 0, "x", "raw", "|u1", [-1], None, -1, "none", 8]], "end": True})',
        'asker.send({"entries": [GROUP, ["dataset", 0, "x", "raw", "|u1", [2], 0, 3, "contiguous", 8]], "end": True})',
        'asker.send({"entries": [GROUP, ["dataset", 0, "x", "raw", "<i3", [2], 0, 6, "contiguous", 8]], "end": True})',
        'asker.send({"entries": [GROUP, ["dataset", 0, "x", "raw", "(9)i4", [2], 0, 6, "none", 8]], "end": True})',
        'asker.send({"want": [0]})',
        'asker.send({"want": [0, 1 << 40]})',
        'asker.send({"want": [1 << 40, 1]})',
        'asker.send({"want": [-1, 1]})',
        'asker._channel.sendall(child._FRAME.pack(3, 0) + b"{,}")',
        'asker._channel.sendall(child._FRAME.pack(100000, 0) + b"[" * 100000)',
        "asker._channel.sendall(child._FRAME.pack(1 << 31, 0))",
        """asker._channel.sendall(child._FRAME.pack(11, 1 << 31) + b'{"end":"1"}')""",
        "asker._channel.sendall(child._FRAME.pack(99, 9))",
    ],
)
def test_nonsense_from_the_process_is_an_error_of_the_file(path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setattr(process, "PROGRAM", instead(line))

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match="h5py could not read it") as caught:
        asked.tree()

    assert caught.value.file == "m.h5"


@pytest.mark.parametrize(
    "reply",
    [
        '{"end": None, "chunk": None}',
        '{"end": ["raw", "<f4", [20, 30], None, 2400, "chunked", 8], "chunk": [7]}',
        '{"end": ["raw", "<f4", [20, 30], None, 2400, "chunked", 8], "chunk": [7, 0]}',
        '{"end": ["raw", "<f4", [20, 30], None, 2400, "chunked", 8], "chunk": "7"}',
    ],
)
def test_a_dataset_is_not_what_contradicts_itself(path: Path, monkeypatch: pytest.MonkeyPatch, reply: str) -> None:
    monkeypatch.setattr(process, "PROGRAM", instead(f"asker.send({reply})"))

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match="'/x': h5py could not read it: it answered what"):
        asked.read("/x", WHOLE, np.empty((20, 30), "f4"))


def test_data_of_another_size_is_not_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        process, "PROGRAM", before("child.File.read = lambda self, _: self._asker.send({'end': True}, bytes(2401))")
    )

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match="'/x': h5py could not read it: it gave 2401 bytes"):
        asked.read("/x", WHOLE, np.empty((20, 30), "f4"))


def test_after_a_process_was_lost_the_next_question_starts_another(
    path: Path, monkeypatch: pytest.MonkeyPatch, children: list[subprocess.Popen[bytes]]
) -> None:
    out = np.empty((20, 30), np.float32)
    monkeypatch.setattr(process, "PROGRAM", before("import os; child.File.read = lambda *_: os._exit(3)"))

    with worker(path) as asked:
        with pytest.raises(CorruptCheckpointError, match="h5py could not read it"):
            asked.read("/x", WHOLE, out)
        monkeypatch.setattr(process, "PROGRAM", ORIGINAL)
        asked.read("/x", WHOLE, out)

    np.testing.assert_array_equal(out, COUNTED)
    assert len(children) == 2


def test_a_question_over_which_a_process_was_lost_at_once_is_not_asked_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, children: list[subprocess.Popen[bytes]]
) -> None:
    def sendall(self: socket.socket, data: bytes) -> None:
        super(socket.socket, self).sendall(data)
        if b'"ask": "read"' in data:
            children[-1].wait(60)

    monkeypatch.setattr(process, "PROGRAM", before("import os; child.File.read = lambda *_: os._exit(3)"))
    monkeypatch.setattr(socket.socket, "sendall", sendall, raising=False)

    with worker(path) as asked:
        asked.tree()
        with pytest.raises(CorruptCheckpointError, match="its process ended with status 3"):
            asked.read("/x", WHOLE, np.empty((20, 30), "f4"))

    assert len(children) == 1


def test_a_process_that_was_killed_while_it_was_idle_costs_nothing(path: Path, children: list[subprocess.Popen[bytes]]) -> None:
    out = np.empty((20, 30), np.float32)

    with worker(path) as asked:
        asked.read("/x", Box((0, 0), (1, 30)), out[:1])
        os.kill(children[0].pid, signal.SIGKILL)
        children[0].wait()
        asked.read("/x", WHOLE, out)

    np.testing.assert_array_equal(out, COUNTED)
    assert len(children) == 2


def test_an_error_of_the_file_does_not_cost_the_process(path: Path, children: list[subprocess.Popen[bytes]]) -> None:
    with worker(path) as asked:
        with pytest.raises(CorruptCheckpointError, match="'/y'"):
            asked.read("/y", WHOLE, np.empty((20, 30), "f4"))
        asked.read("/x", WHOLE, np.empty((20, 30), "f4"))

    assert len(children) == 1


def test_nothing_is_started_before_it_is_needed(path: Path, children: list[subprocess.Popen[bytes]]) -> None:
    with worker(path):
        pass

    assert children == []


def test_close_ends_the_process(path: Path, children: list[subprocess.Popen[bytes]]) -> None:
    with worker(path) as asked:
        asked.tree()
        assert children[0].poll() is None

    assert children[0].poll() in (0, -signal.SIGKILL)  # it may leave by itself before it is killed


def test_a_worker_that_is_dropped_ends_its_process(path: Path, children: list[subprocess.Popen[bytes]]) -> None:
    asked = worker(path)
    asked._process.ask("tree")

    del asked

    assert children[0].poll() in (0, -signal.SIGKILL)


def test_the_process_ends_when_nobody_asks_any_more(path: Path, children: list[subprocess.Popen[bytes]]) -> None:
    asked = worker(path)
    asked.tree()
    assert asked._process._started is not None

    asked._process._started.channel.close()

    assert children[0].wait(10) == 0


def test_many_threads_ask_one_process(path: Path, children: list[subprocess.Popen[bytes]]) -> None:
    rows = [np.empty((1, 30), np.float32) for _ in range(20)]

    with worker(path) as asked, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda at: asked.read("/x", Box((at, 0), (at + 1, 30)), rows[at]), range(20)))

    np.testing.assert_array_equal(np.concatenate(rows), COUNTED)
    assert len(children) == 1


def test_an_error_of_the_storage_passes_untouched_and_the_next_question_is_answered(path: Path) -> None:
    data, failures = path.read_bytes(), [PermissionError("no longer")]

    def fetch(offset: int, nbytes: int) -> bytes:
        if failures:
            raise failures.pop()
        return data[offset : offset + nbytes]

    with Worker(Reader(fetch, len(data)), Origin("m.h5", "m.h5")) as asked:
        with pytest.raises(PermissionError, match="no longer"):
            asked.tree()
        assert list(asked.tree().root.children) == ["x"]


@pytest.mark.parametrize("what", ["open('/dev/null')", "open('{new}', 'w')", "child.socket.socketpair()", "os.pipe()"])
def test_the_process_can_open_nothing_more(path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(process, "PROGRAM", before(f"import os\nchild.File.tree = lambda *_: {what.format(new=path)}"))

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match="Too many open files"):
        asked.tree()


def test_the_process_leaves_no_core_file_and_loads_no_filter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "def tree(*_): raise ValueError(child.resource.getrlimit(child.resource.RLIMIT_CORE), child.h5pl.size())"
    monkeypatch.setattr(process, "PROGRAM", before(f"{line}\nchild.File.tree = tree"))

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match=re.escape("ValueError: ((0, 0), 0)")):
        asked.tree()


def test_a_fork_starts_a_process_of_its_own(path: Path) -> None:
    out = np.empty((20, 30), np.float32)
    with worker(path) as asked:
        asked.read("/x", WHOLE, out)

        assert in_child(lambda: asked.read("/x", WHOLE, out)) == 0
        asked.read("/x", WHOLE, out)


def test_the_process_has_none_of_our_environment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    monkeypatch.setenv("HDF5_PLUGIN_PATH", "/plugins")
    names = "' '.join(sorted(name for name in child.os.environ if name[:2] in ('SE', 'HD')))"
    monkeypatch.setattr(process, "PROGRAM", before(f"def tree(*_): raise ValueError({names})\nchild.File.tree = tree"))

    with worker(path) as asked, pytest.raises(CorruptCheckpointError, match=r"ValueError: HDF5_PLUGIN_PRELOAD$"):
        asked.tree()


def test_the_process_imports_nothing_but_h5py_and_its_own_modules(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = "' '.join(sorted(name for name in sys.modules if name.startswith('ckptmgr')))"
    monkeypatch.setattr(process, "PROGRAM", before(f"def tree(*_): raise ValueError({names})\nchild.File.tree = tree"))

    with (
        worker(path) as asked,
        pytest.raises(CorruptCheckpointError, match=r"ValueError: ckptmgr_hdf5 ckptmgr_hdf5\.child ckptmgr_hdf5\.vetting$"),
    ):
        asked.tree()


def test_without_h5py_the_line_to_install_it_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with worker(path) as asked, pytest.raises(MissingDependencyError, match=r"pip install 'ckptmgr\[hdf5\]'"):
        asked.tree()


def test_an_h5py_that_cannot_be_imported_is_no_error_of_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PROGRAM", "raise ImportError")

    with worker(path) as asked, pytest.raises(MissingDependencyError, match="a process that imports it does not start"):
        asked.tree()
