"""New weights in a copy of a whole-model file that another tool made: everything else in it stays what it was.

The format's backend says where every byte of the copy lies; what is not given comes straight from the template.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from ckptmgr import backend as backends
from ckptmgr import transfer, tree
from ckptmgr.backend import Backend, Templated
from ckptmgr.errors import StateMismatchError, shown
from ckptmgr.layout import Contents, Extent, Part, Path
from ckptmgr.matching import Stored, Wanted, match, shown_spec
from ckptmgr.memory import MemorySource
from ckptmgr.renaming import Selection, walk
from ckptmgr.restorereport import Mismatch, RestoreReport
from ckptmgr.saving import ALIGN
from ckptmgr.skeleton import TensorNode, decode
from ckptmgr.source import TensorSource
from ckptmgr.spec import TensorSpec
from ckptmgr.step import JSON
from ckptmgr.storage import Folder, open_folder

_SHOWN = 5  # differences in a message; the error has them all


def swap_weights(
    template: str | os.PathLike[str],
    state: Any,
    destination: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> str:
    """Writes a copy of a whole-model file with other values of its tensors, and gives the copy's path.

    ``template`` is a file of a format that can be copied so: one of Keras', ``.keras``, ``.h5`` or ``.weights.h5``. ``state``
    has arrays by the template's names, as `load` gives them, nested or flat; what it lacks keeps the template's value.
    ``destination`` may be the template itself. It appears whole and durable under its name, or is as it was if this raises.
    ``storage_options`` are for both places.

    Raises:
        StateMismatchError: names that the template does not have, other shapes or dtypes; lists every one.
        ValueError: the template's format has no such files, or ``destination`` does not end as they do.
        UnsupportedLeafError: the state holds something that is no array or number.
        CorruptCheckpointError: the template is damaged; names file and tensor.
        FileNotFoundError: there is no template.
        OSError: the storage failed.
    """
    folder, name = _place(os.path.realpath(template) if os.path.islink(template) else template, storage_options)
    found = backends.detect(folder, name)
    with found.open(folder, name) as source:
        writer = _writer(found, source, folder.location(name))
        target, stem = _target(destination, writer, storage_options)
        new = _fitting(source, state, folder.location(name))
        contents = Contents(files=(tuple(Part(each, spec) for each, spec in source.specs.items()),))
        layout = writer.layout(contents, stem=stem, align=ALIGN)
        written = transfer.write(target, layout, _Overlaid(source, new))
    return target.location(next(iter(written.files)))


@dataclass(frozen=True, slots=True)
class _Overlaid:
    """``source`` with the tensors of ``other``, whose names it has too, in place of its own. Closing it closes neither."""

    source: TensorSource
    other: TensorSource

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        return self.source.specs

    @property
    def metadata(self) -> Mapping[str, JSON]:
        return self.source.metadata

    @property
    def aliases(self) -> Mapping[str, str]:
        return self.source.aliases

    @property
    def blobs(self) -> Mapping[str, bytes]:
        return self.source.blobs

    def extents(self, name: str) -> Sequence[Extent]:
        return self._of(name).extents(name)

    def read(self, name: str, box: Any = None, out: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        return self._of(name).read(name, box, out)

    def close(self) -> None:
        """Nothing of its own is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _of(self, name: str) -> TensorSource:
        return self.other if name in self.other.specs else self.source


def _writer(backend: Backend, source: TensorSource, location: str) -> Backend:
    if isinstance(backend, Templated):
        return backend.with_template(source)
    raise ValueError(
        f"{location!r} is of the format {backend.name!r}, whose files hold weights alone: load it, change them, and save them. "
        "(The weights of a TensorFlow SavedModel are replaced by a save to 'variables/variables' in its folder.)"
    )


def _fitting(source: TensorSource, state: Any, location: str) -> MemorySource:
    """The state's tensors by the template's names."""
    flat = tree.flatten(state)

    def tensor(node: TensorNode) -> str:
        return flat.aliases.get(node.name, node.name)

    leaves: dict[Path, Any] = dict(walk(decode(flat.skeleton, lambda _, leaf: leaf)))
    wanted = [Wanted(path, flat.specs[tensor(leaf)] if isinstance(leaf, TensorNode) else leaf) for path, leaf in leaves.items()]
    stored = Stored(source, None)
    matched = match(stored, wanted, free=[()], select=Selection(None), cast="no")
    _check(matched.report, location)
    tensors: dict[str, Any] = {}
    for pair in matched.pairs:
        leaf, name = leaves[pair.wanted.path], stored.tensor(stored.leaves[pair.path])
        tensors[name] = flat.tensors[tensor(leaf)] if isinstance(leaf, TensorNode) else _array(name, leaf, source, location)
    return MemorySource(tensors, {name: source.specs[name] for name in tensors})


def _array(name: str, number: Any, source: TensorSource, location: str) -> np.ndarray[Any, Any]:
    spec = source.specs[name]
    try:
        return np.asarray(number, spec.numpy)
    except OverflowError as error:
        dtype = shown_spec(spec)
        text = f"{_misfit(location)} {name!r} is {dtype}, too small for {number}"
        raise StateMismatchError(text, report=RestoreReport(mismatched=(Mismatch(name, dtype, str(number)),))) from error


def _check(found: RestoreReport, location: str) -> None:
    """Raises StateMismatchError if there is a difference; its report is from the template's side."""
    different = tuple(Mismatch(each.name, each.found, each.wanted) for each in found.mismatched)
    report = RestoreReport(unexpected=found.missing, mismatched=different, near=found.near)
    if report.is_exact:
        return
    near = [f"{name!r}{_near(report.near.get(name, ()))}" for name in report.unexpected]
    shapes = [f"{name!r} (template {wanted}, given {given})" for name, wanted, given in report.mismatched]
    lists = (("not in the template", near), ("different", shapes))
    text = " ".join(f"{len(texts)} {what}: {_cut(texts)}." for what, texts in lists if texts)
    raise StateMismatchError(f"{_misfit(location)} {text}", unexpected=report.unexpected, report=report)


def _misfit(location: str) -> str:
    return f"the weights do not fit the template {location!r}; nothing was written."


def _near(names: Sequence[str]) -> str:
    return f" (near: {shown(names)})" if names else ""


def _cut(texts: Sequence[str]) -> str:
    more = f", and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _target(url: str | os.PathLike[str], backend: Backend, storage_options: Mapping[str, Any] | None) -> tuple[Folder, str]:
    """The folder and the stem of the new file."""
    folder, name = _place(url, storage_options)
    stem = name.removesuffix(backend.suffix)
    if not stem or stem == name or os.fspath(url).endswith("/"):
        raise ValueError(f"{os.fspath(url)!r} does not end in {backend.suffix!r}, as a copy of this template must: name it so")
    return folder, stem


def _place(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None) -> tuple[Folder, str]:
    """The folder that a path is in, and its name there."""
    text = os.fspath(url)
    if "://" not in text:
        text = os.path.abspath(os.path.expanduser(text))
    parent, _, name = text.rstrip("/").replace(os.sep, "/").rpartition("/")
    return open_folder(parent or "/", storage_options), name
