"""An opened checkpoint: a managed step, or a file of any known format. Nothing is read before it is asked for.

Both are a `TensorSource`. A managed step needs no format parser: its ``tree.json`` says where every tensor lies.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from ckptmgr import backend as backends
from ckptmgr import garbage, partial, restoring, transfer
from ckptmgr.backend import Backend
from ckptmgr.box import Box
from ckptmgr.errors import CorruptCheckpointError, StepNotFoundError, UnsupportedTensorError, shown
from ckptmgr.layout import Extent, Part
from ckptmgr.manifest import ASSET, TREE, FileEntry, Manifest, folder_name
from ckptmgr.renaming import Renaming, near_names, rules_of
from ckptmgr.restorereport import RestoreReport
from ckptmgr.smallfile import read_checked
from ckptmgr.source import Replaceable, TensorSource, unreadable_of
from ckptmgr.spec import TensorSpec
from ckptmgr.step import JSON, StepInfo
from ckptmgr.storage import Folder, FolderOfFiles
from ckptmgr.transfer import Place, Problem, Progress, Verify, Want
from ckptmgr.treefile import TreeText
from ckptmgr.treesource import TreeSource

Cast = Literal["no", "same_kind", "any"]
BATCH_NBYTES = 64 << 20  # of tensors held at a time while a foreign file is read through
SKELETON = "ckptmgr"  # the metadata key of a single file that holds more than a flat dict of arrays
CARRIED = "ckptmgr.carried"  # the metadata key of what a conversion keeps for the way back


class Restored(NamedTuple):
    """What a restore gave: the step (None for a file without one), the state, what is known of the step, and the report."""

    step: int | None
    state: Any
    info: StepInfo | None
    report: RestoreReport

    def __repr__(self) -> str:
        sorts = ("filled", "missing", "unexpected", "mismatched", "recast", "kept", "skipped")
        counts = [f"{len(names)} {sort}" for sort in sorts if (names := getattr(self.report, sort))]
        return f"<Restored step {self.step}: {type(self.state).__name__}, {', '.join(counts) or 'empty'}>"


class Checkpoint:
    """An opened checkpoint. Tensor names are the state's keys joined by ``/``; a context manager.

    ``info``, ``metrics`` and assets are there for managed steps; ``metadata`` is the step's, or what a file carries.
    """

    def __init__(
        self,
        source: TensorSource,
        *,
        backend: str,
        location: str,
        info: StepInfo | None = None,
        folder: Folder | None = None,
        files: Sequence[FileEntry] = (),
        verify: Verify = "full",
        is_current: Callable[[], bool] = lambda: True,
    ) -> None:
        self.backend = backend
        self.location = location
        self.info = info
        self._source, self._folder, self._files = source, folder, tuple(files)
        self._verify: Verify = verify
        self._is_current = is_current

    @property
    def source(self) -> TensorSource:
        """The tensors as their files have them, for whoever moves them on."""
        return self._source

    @property
    def skeleton(self) -> JSON:
        """The skeleton of the state; None for a file that has none."""
        source = self._source
        return source.tree.skeleton if isinstance(source, TreeSource) else source.metadata.get(SKELETON)

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Dtype and shape of every tensor, by name."""
        return self._source.specs

    @property
    def aliases(self) -> Mapping[str, str]:
        """Further names of tied tensors."""
        return self._source.aliases

    @property
    def blobs(self) -> Mapping[str, bytes]:
        """What else the format carries, by name."""
        return self._source.blobs

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Tensors of kinds that no array holds, by name: what each is. They have no spec."""
        return unreadable_of(self._source)

    @property
    def metrics(self) -> Mapping[str, float]:
        """The step's metrics."""
        return self.info.metrics if self.info else {}

    @property
    def metadata(self) -> Mapping[str, JSON]:
        """The step's metadata, or a file's own."""
        if self.info:
            return self.info.metadata
        return {key: value for key, value in self._source.metadata.items() if key not in (SKELETON, CARRIED)}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, tied ones once, without those whose entries are damaged."""
        return sum(spec.nbytes for spec in _understood(self.specs)[0].values())

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Files of a managed step, each with size and crc32c; empty for a foreign file."""
        return self._files

    @property
    def assets(self) -> tuple[str, ...]:
        """Names of the files that were saved beside the state."""
        return tuple(entry.name for entry in self._files if entry.extra.get(ASSET))

    def asset(self, name: str) -> bytes:
        """An asset's bytes, verified.

        Raises:
            KeyError: no asset of that name; the message lists those there are.
        """
        entry = next((entry for entry in self._files if entry.name == name), None)
        if entry is None or self._folder is None or name not in self.assets:
            raise KeyError(f"no asset {name!r} in {self.location!r} (found: {', '.join(self.assets) or 'none'})")
        with self.explained():
            return bytes(read_checked(self._folder, entry))

    def extents(self, name: str) -> Sequence[Extent]:
        """Where a tensor lies; see `TensorSource`."""
        return self._source.extents(self.aliases.get(name, name))

    def read(self, name: str, box: Box | None = None, out: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        """One tensor, or the slice ``box`` of it, without reading the others; ``out`` is filled if it is given.

        A tensor read whole is checked against its checksum; a slice can only be checked for size.

        Raises:
            KeyError: no tensor of that name; the message lists the nearest.
            UnsupportedTensorError: its raw bytes are carried in `blobs`, and no array can be made of them.
            ValueError: ``box`` or ``out`` does not fit the tensor.
            CorruptCheckpointError: its bytes are not what was written.
        """
        source = self._source.only(name) if isinstance(self._source, TreeSource) else self._source
        if name not in source.specs:
            source, name = self._source, self.aliases.get(name, name)
        if name not in source.specs and name in self.blobs:
            problem = f"no array can be made of it; its raw bytes are in .blobs[{name!r}]"
            raise UnsupportedTensorError(f"tensor {name!r} in {self.location!r} is carried, not decoded: {problem}", tensor=name)
        if name not in source.specs:
            near = near_names([name], self.specs).get(name, ())
            raise KeyError(f"no tensor {name!r} in {self.location!r}" + (f" (near: {shown(near)})" if near else ""))
        with self.explained():
            arrays, _ = transfer.read(source, [Want(name, box, out)], verify=self._verify)
        return arrays[0]

    def load(self) -> Any:
        """The whole state as dicts, lists, tuples, scalars and numpy arrays."""
        return self.restore().state

    def restore(
        self,
        *,
        into: Any = None,
        select: Sequence[str] | str | None = None,
        rename: Renaming | None = None,
        cast: Cast = "no",
        strict: bool = True,
        verify: Verify | None = None,
        progress: Progress | None = None,
        mmap: bool = False,
        copy: bool = False,
    ) -> Restored:
        """The state, or the part of it that ``into`` and ``select`` ask for.

        ``into``: containers, arrays and objects like those wanted. ``select``: globs on names; only names that one of them
        matches are wanted, on both sides. ``rename``: one rule or several that change the checkpoint's names in turn:
        ``(prefix, new prefix)``, ``(pattern, replacement)``, a function, a dict of exact names, ``"strip-module"``,
        ``"strip-compiled"``. ``cast``: which dtypes may be converted: ``"no"``, ``"same_kind"`` (numpy's rule), ``"any"``. With
        ``strict`` every difference is an error; without, what fits is restored, the rest of ``into`` stays as it is and is
        listed in the report.

        New numpy arrays share slabs of memory with their neighbours in the files; with ``copy`` each has memory of its own. With
        ``mmap``, which goes without ``into``, they are the files on a local disk, copied on write: nothing is read now, and
        nothing verified but by `verify`.

        Mutable arrays in ``into`` are filled in place; if this raises `CorruptCheckpointError` or `OSError` their contents are
        undefined. Every other error is raised before anything is changed, but for one of an object's own ``load_state_dict``,
        which is called when arrays and earlier objects have been filled.

        Raises:
            StateMismatchError: ``into`` and the checkpoint differ (with ``strict``); lists every difference.
            UnsupportedTensorError: something that is asked for is `unreadable` (with ``strict``; else it is in the report).
            ValueError: an unknown ``cast``, a glob that matches nothing, rules that give two values one name, or ``mmap`` of
                files that are on no local disk.
            CorruptCheckpointError: bytes are not what was written; names file and tensor.
        """
        left = partial.asked_for(self.unreadable, select, rules_of(rename))
        if strict:
            partial.refuse(left, self.source, self.location)
        with self.explained():
            state, report = restoring.restore(
                self._source,
                self.skeleton,
                into=into,
                select=select,
                rename=rename,
                cast=cast,
                strict=strict,
                verify=verify or self._verify,
                progress=progress,
                mmap=mmap,
                copy=copy,
            )
        report = partial.told(report, left)
        return Restored(self.info.step if self.info else None, state, self.info, report)

    def verify(self, *, full: bool = True, progress: Progress | None = None) -> list[Problem]:
        """Reads every byte of every file (sizes only if not ``full``) and names what is damaged; empty if all is well.

        A foreign file without checksums can only be read through. Its structure and sizes were checked when it was opened.
        """
        if self._folder is None:
            specs, problems = _understood(self.specs)
            return problems + (self._read_through(specs, progress) if full else [])
        entries = [(entry.name, entry.nbytes, entry.crc32c) for entry in self._files]
        with self.explained():
            problems = transfer.check(self._folder, entries, places=self._places(), full=full, progress=progress)
        if problems and not self._is_current():
            raise _gone(self.info, self.location)
        return problems

    def close(self) -> None:
        """Lets go of what the format's reader holds."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Checkpoint {self.location!r}: {len(self.specs)} tensors, {self.nbytes} bytes, {self.backend}>"

    def _read_through(self, specs: Mapping[str, TensorSpec], progress: Progress | None) -> list[Problem]:
        problems: list[Problem] = []
        done, total = 0, sum(spec.nbytes for spec in specs.values())
        for names in _batches(specs):
            if self._damage(names) is not None:
                problems += [problem for name in names if (problem := self._damage([name])) is not None]
            done += sum(specs[name].nbytes for name in names)
            if progress is not None:
                progress(done, total)
        return problems

    def _damage(self, names: Iterable[str]) -> Problem | None:
        try:
            transfer.read(self._source, map(Want, names))
        except CorruptCheckpointError as error:
            return Problem(error.file or self.location, error.tensor, str(error))
        return None

    def _places(self) -> dict[str, list[Place]]:
        places: dict[str, list[Place]] = {}
        for row in self._source.rows if isinstance(self._source, TreeSource) else ():
            if row.offset is not None:
                nbytes = Part(row.name, row.spec, row.box).nbytes
                places.setdefault(row.file, []).append(Place(row.name, row.offset, nbytes, row.crc32c))
        return places

    @contextmanager
    def explained(self) -> Iterator[None]:
        # Files of a step that is deleted while it is open look like damage; the record tells which it is. Where a bare file or
        # file set is replaced while it is open, new data may lie where the old header or index leads.
        try:
            yield
        except CorruptCheckpointError as error:
            if not self._is_current():
                raise _gone(self.info, self.location) from error
            error.step = self.info.step if self.info else None
            raise
        if isinstance(self._source, Replaceable) and not self._source.is_same():
            text = f"{self.location!r} was replaced while it was open, and what was read may be of both: open it again"
            raise CorruptCheckpointError(text, step=self.info.step if self.info else None)


def _gone(info: StepInfo | None, location: str) -> StepNotFoundError:
    step = info.step if info else None
    return StepNotFoundError(
        f"step {step} in {location!r} was deleted or overwritten while it was open: open it again", step=step
    )


def files_of(root: Folder, name: str, manifest: Manifest) -> Folder:
    """Where the files of a committed step are read, those included that lie with an older step; ``name`` is its folder's."""
    folder = root.folder(name).folder(folder_name(manifest.attempt))
    elsewhere = {entry.name: root.key(entry.origin.path) for entry in manifest.files if entry.origin}
    return FolderOfFiles(folder.store, folder.prefix, elsewhere) if elsewhere else folder


def open_managed(
    folder: Folder,
    manifest: Manifest,
    info: StepInfo,
    *,
    verify: Verify = "full",
    is_current: Callable[[], bool] = lambda: True,
) -> Checkpoint:
    """The step whose files are in ``folder`` (see `files_of`). Reads ``tree.json`` and nothing else, decoded when asked.

    Raises:
        CorruptCheckpointError: ``tree.json`` is missing or not what was written.
        StepNotFoundError: the step was deleted or overwritten since its record was read.
    """
    entry = next((entry for entry in manifest.files if entry.name == TREE), None)
    if entry is None:
        raise CorruptCheckpointError(f"the manifest of step {info.step} names no {TREE}", step=info.step, file=TREE)
    try:
        totals = {entry.name: (entry.nbytes, entry.crc32c) for entry in manifest.files}
        tree = TreeText(read_checked(folder, entry), totals, where=folder.location(TREE), step=info.step)
    except CorruptCheckpointError as error:
        if not is_current():
            raise _gone(info, folder.location()) from error
        error.step = info.step
        raise
    return Checkpoint(
        TreeSource(folder, tree, lambda file: backends.find(manifest.backend).open(folder, file), totals),
        backend=manifest.backend,
        location=folder.location(),
        info=info,
        folder=folder,
        files=manifest.files,
        verify=verify,
        is_current=is_current,
    )


@garbage.later()
def open_files(backend: Backend, folder: Folder, path: str, *, verify: Verify = "full") -> Checkpoint:
    """A file or file set in the backend's own format, ours or foreign."""
    source = backend.open(folder, path)
    return Checkpoint(source, backend=backend.name, location=folder.location(path), verify=verify)


def _understood(specs: Mapping[str, TensorSpec]) -> tuple[dict[str, TensorSpec], list[Problem]]:
    """The specs that can be told, and what is wrong with the entries of the others."""
    found: dict[str, TensorSpec] = {}
    problems: list[Problem] = []
    for name in specs:
        try:
            found[name] = specs[name]
        except CorruptCheckpointError as error:
            problems.append(Problem(error.file or "", error.tensor or name, str(error)))
    return found, problems


def _batches(specs: Mapping[str, TensorSpec]) -> Iterator[list[str]]:
    """Names of tensors that are read together: few enough bytes, or one large tensor alone."""
    batch: list[str] = []
    nbytes = 0
    for name, spec in specs.items():
        if batch and nbytes + spec.nbytes > BATCH_NBYTES:
            yield batch
            batch, nbytes = [], 0
        batch.append(name)
        nbytes += spec.nbytes
    if batch:
        yield batch
