"""Which backend a name or a file's content leads to, and what is said when there is none."""

from importlib.metadata import EntryPoint

import pytest
from stores import MemoryStore

from ckptmgr import BackendNotFoundError, backend
from ckptmgr.storage import Folder


class Recording:
    """A backend that recognizes nothing and remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, bytes, list[str]]] = []

    def recognizes(self, path, head, siblings):
        self.shown.append((path, head, sorted(siblings)))
        return False


@pytest.fixture
def recording(monkeypatch):
    found = Recording()
    monkeypatch.setattr(backend, "available", lambda: ["recording"])
    monkeypatch.setattr(backend, "find", lambda name: found)
    return found


def test_names_of_backends_are_sorted(monkeypatch):
    points = {name: EntryPoint(name, "nowhere:Nothing", backend.GROUP) for name in ("b", "c", "a")}
    monkeypatch.setattr(backend, "_entry_points", lambda: points)

    assert backend.available() == ["a", "b", "c"]


def test_a_backend_that_is_not_installed_is_told_with_those_that_are():
    with pytest.raises(BackendNotFoundError, match=r"no backend 'nothing' is installed \(found: .*'safetensors'") as caught:
        backend.find("nothing")

    assert "safetensors" in caught.value.available


@pytest.mark.parametrize(
    ("path", "head", "siblings"),
    [
        ("m.bin", b"x" * 4096, ["m.bin", "m.idx"]),
        ("m", b"", ["m.bin", "m.idx"]),
        ("", b"", ["m.bin", "m.idx"]),
        ("inside", b"", ["a", "b"]),
    ],
    ids=["file", "prefix", "the folder itself", "folder"],
)
def test_a_backend_is_shown_the_first_4_kib_and_the_names_beside(recording, path, head, siblings):
    folder = Folder(MemoryStore({"m.bin": b"x" * 5000, "m.idx": b"", "inside/a": b"", "inside/b": b""}))

    with pytest.raises(BackendNotFoundError, match="no installed backend recognizes") as caught:
        backend.detect(folder, path)

    assert recording.shown == [(path, head, siblings)]
    assert caught.value.available == ["recording"]


@pytest.mark.parametrize(("path", "words"), [("n", "nothing at"), ("run", "only folders: of a run, open one step's folder")])
def test_where_no_file_is_no_backend_is_asked(recording, path, words):
    folder = Folder(MemoryStore({"m.bin": b"", "run/step-1/a": b""}))

    with pytest.raises(FileNotFoundError, match=words):
        backend.detect(folder, path)

    assert recording.shown == []
