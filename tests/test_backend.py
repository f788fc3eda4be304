"""Which backend a name or a file's content leads to, and what is said when there is none."""

from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
from stores import MemoryStore

from ckptmgr import BackendNotFoundError, MissingDependencyError, backend
from ckptmgr.storage import Folder


class Recording:
    """A backend that recognizes nothing and remembers what it was shown."""

    suffix = ""

    def __init__(self) -> None:
        self.shown: list[tuple[str, bytes, list[str]]] = []

    def recognizes(self, path, head, siblings):
        self.shown.append((path, head, sorted(siblings)))
        return False

    def file_sets(self, names):
        return {}


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


def importing(monkeypatch, *broken: str, error: ImportError) -> None:
    """Installs backends of these names that cannot be imported."""

    class Broken(EntryPoint):
        def load(self):
            raise error

    points = {name: Broken(name, f"plugin_{name}:Backend", backend.GROUP) for name in broken}
    monkeypatch.setattr(backend, "_entry_points", lambda: points)
    backend.find.cache_clear()


def test_a_package_that_is_missing_is_told_with_the_pip_line(monkeypatch):
    importing(monkeypatch, "tf_bundle", error=ModuleNotFoundError("No module named 'google'", name="google.protobuf"))

    with pytest.raises(MissingDependencyError, match=r"No module named 'google'; pip install 'ckptmgr\[tf-bundle\]'"):
        backend.find("tf_bundle")


@pytest.mark.parametrize("name", ["plugin_x.codec", "ckptmgr.backend"])
def test_a_plugin_that_is_broken_itself_is_no_missing_package(monkeypatch, name):
    importing(monkeypatch, "x", error=ImportError("cannot import name 'Y'", name=name))

    with pytest.raises(ImportError, match="cannot import name") as caught:
        backend.find("x")

    assert not isinstance(caught.value, MissingDependencyError)


def test_detection_passes_over_what_cannot_be_imported_and_says_how_to_get_it(monkeypatch):
    importing(monkeypatch, "tf_bundle", "hdf5", error=ModuleNotFoundError("No module named 'h5py'", name="h5py"))
    folder = Folder(MemoryStore({"m.h5": b"x"}))

    with pytest.raises(BackendNotFoundError) as caught:
        backend.detect(folder, "m.h5")

    assert "pip install 'ckptmgr[hdf5]'" in str(caught.value)
    assert "pip install 'ckptmgr[tf-bundle]'" in str(caught.value)


def test_detection_goes_on_after_what_cannot_be_imported(monkeypatch, recording):
    recording.recognizes = lambda path, head, siblings: True

    def find(name):
        if name == "absent":
            raise MissingDependencyError("absent")
        return recording

    monkeypatch.setattr(backend, "available", lambda: ["absent", "recording"])
    monkeypatch.setattr(backend, "find", find)

    assert backend.detect(Folder(MemoryStore({"m.bin": b"x"})), "m.bin") is recording


def test_packages_of_another_projects_plugin_are_not_ours_to_name(monkeypatch):
    importing(monkeypatch, "zarr", error=ModuleNotFoundError("No module named 'zarr'", name="zarr"))
    monkeypatch.setattr(EntryPoint, "dist", SimpleNamespace(name="ckptmgr-zarr"))

    with pytest.raises(MissingDependencyError, match="install what 'ckptmgr-zarr' needs"):
        backend.find("zarr")
