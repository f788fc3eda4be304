"""From a checkpoint in one format to one in another: tensors move from extents to a layout, everything else is taken along.

The law: nothing appears at the destination before every byte is durable and has been compared with the source's checksums, and
nothing that the source holds is dropped without being told.
"""

import errno
import fnmatch
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ckptmgr import backend as backends
from ckptmgr import carrying, comparing, kerasfiles, partial, saving
from ckptmgr.backend import Backend, Formed
from ckptmgr.carrying import Account, Baggage
from ckptmgr.checkpoint import SKELETON, Checkpoint
from ckptmgr.comparing import Sums
from ckptmgr.convertreport import STRING, ConvertedTensor, ConvertReport
from ckptmgr.errors import CorruptCheckpointError, UnsupportedTensorError, shown
from ckptmgr.files import open_checkpoint, target
from ckptmgr.layout import Contents, Digests, FileLayout, Layout, Part, pack
from ckptmgr.manager import STEM, CheckpointManager
from ckptmgr.rules import Layers
from ckptmgr.rulesets import RECORD, Given, Rules
from ckptmgr.saving import ALIGN, Plan, Prepared
from ckptmgr.source import Replaceable, Summed, TensorSource
from ckptmgr.spec import TensorSpec, numpy_dtype
from ckptmgr.staging import Stages, staged
from ckptmgr.step import StepInfo
from ckptmgr.storage import Folder
from ckptmgr.streaming import BUDGET_NBYTES, Stream, check_unchanged, once_more
from ckptmgr.strings import string_values
from ckptmgr.structure import Structure
from ckptmgr.transfer import Progress, Stats
from ckptmgr.tree import Flat
from ckptmgr.views import Recast, Renamed


def convert(
    src: str | os.PathLike[str] | Checkpoint,
    dst: str | os.PathLike[str] | CheckpointManager,
    *,
    to: str | Backend | None = None,
    step: int | None = None,
    rename: "Given | Sequence[Given]" = (),
    select: Sequence[str] | str | None = None,
    cast: Mapping[str, str] | None = None,
    overwrite: bool = False,
    backend: str | Backend | None = None,
    max_file_nbytes: int | None = None,
    src_options: Mapping[str, Any] | None = None,
    dst_options: Mapping[str, Any] | None = None,
    budget: int = BUDGET_NBYTES,
    progress: Progress | None = None,
) -> ConvertReport:
    """Writes the checkpoint ``src`` into ``dst`` in the format ``to``, and tells what became of everything in it.

    Args:
        src: whatever `open_checkpoint` opens, by path, URL or as an open `Checkpoint`.
        dst: a file or, ending in ``/``, a folder for one, as `save` takes it; with ``step`` a run, by URL or as its manager.
        to: name of an installed format or a `Backend`; by default what the ending of ``dst`` says, or the manager's own. An
            ending may also tell the form: ``.keras`` and ``.weights.h5`` are files of Keras'.
        step: commit it as this step of the run at ``dst``.
        rename: rules for names and layers, one after another: pairs and functions as in `Checkpoint.restore`, exact names as a
            dict, `Layers`, the name of a built-in set such as ``"keras-to-torch"``, the path of a rule file, or `Rules`. What
            they did is kept in the metadata: `Rules.inverted_from` undoes it.
        select: globs on the new names; only what one of them matches is converted.
        cast: new dtypes, by globs on the new names; the first that matches counts.
        overwrite: whether a checkpoint at ``dst`` may be replaced.
        backend: the format of ``src``, where its content does not tell.
        max_file_nbytes: most tensor bytes in one file.
        src_options: storage options of ``src``; ``dst_options``: of ``dst``.
        budget: bytes of tensors in memory at a time, 64 MiB by default. A tensor that only its format's reader can decode, and
            only as a whole, and strings come on top of it.
        progress: called as ``progress(bytes_done, bytes_total)`` while bytes move; a manager calls its own.

    ``dst`` appears whole, as `save` and `CheckpointManager.save` have it, or stays as it was. Tensors keep dtype and bytes; those
    that lie raw in a file are never decoded, and what was written is compared with the checksums that the source has before
    ``dst`` appears. Names, nesting, plain values, tied tensors and metadata come along; what ``dst`` has no place for is kept in
    its metadata for a conversion back, or listed in the report.

    Raises:
        FileExistsError: there is a checkpoint at ``dst`` and ``overwrite`` is not set (`StepExistsError` for a step).
        UnsupportedTensorError: the format cannot hold one of the tensors exactly, or one cannot be read from ``src``; names it.
        CorruptCheckpointError: the source is damaged, or was changed meanwhile; names file and tensor.
        ValueError: a glob or rule that matches nothing, rules that give two values one name, layers of no known kind, an
            ending that is of no format, a source that would be overwritten by itself.
        OSError: the storage failed.
    """
    with ExitStack() as stack:
        opened = src
        if not isinstance(opened, Checkpoint):
            opened = stack.enter_context(open_checkpoint(opened, backend=backend, storage_options=src_options))
        stack.enter_context(opened.explained())
        place = _place(dst, to, step, dst_options, progress, max_file_nbytes)
        take = _taken_for_keras if step is None and kerasfiles.is_form(place.backend) else taken
        job = Job(opened, place, rules_of(rename, select, cast), take)
        return job.run(overwrite=overwrite, max_file_nbytes=max_file_nbytes, budget=budget, progress=progress)


def convert_step(
    opened: Checkpoint,
    root: Folder,
    step: int,
    to: Backend,
    complete: Callable[[Prepared], StepInfo],
    *,
    rename: "Given | Sequence[Given]" = (),
    select: Sequence[str] | str | None = None,
    cast: Mapping[str, str] | None = None,
    overwrite: bool = False,
    max_file_nbytes: int | None = None,
) -> ConvertReport:
    """Converts an opened checkpoint into a step of the run at ``root``, which ``complete`` writes. Raises as `convert`."""
    job = Job(opened, Place(to, root, STEM, step, complete), rules_of(rename, select, cast))
    return job.run(overwrite=overwrite, max_file_nbytes=max_file_nbytes, budget=BUDGET_NBYTES, progress=None)


def rules_of(rename: "Given | Sequence[Given]", select: Sequence[str] | str | None, cast: Mapping[str, str] | None) -> Rules:
    """The rules of a conversion as one. Raises as `Rules.of`."""
    globs = None if select is None else tuple([select] if isinstance(select, str) else select)
    return Rules.of(rename).joined(Rules((), globs, cast))


@dataclass(frozen=True, slots=True)
class Place:
    """Where files go: ``stem`` in ``folder``, or a step of the run there, which ``complete`` writes.

    ``beside`` are small files that appear with those of the format, before the one to open.
    """

    backend: Backend
    folder: Folder
    stem: str
    step: int | None = None
    complete: Callable[[Prepared], StepInfo] | None = None
    beside: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def location(self) -> str:
        """The place, for people."""
        return self.folder.location() if self.step is not None else self.folder.location(self.stem)


def _place(
    dst: str | os.PathLike[str] | CheckpointManager,
    to: str | Backend | None,
    step: int | None,
    options: Mapping[str, Any] | None,
    progress: Progress | None,
    max_file_nbytes: int | None,
) -> Place:
    if isinstance(dst, CheckpointManager):
        if step is None or to is not None:
            raise ValueError("into a manager's run: say step=, and leave out to=, for the manager has a format")
        return Place(dst.backend, dst.folder, STEM, step, dst.complete)
    if step is None:
        chosen = _chosen(os.fspath(dst), to)
        return Place(chosen, *target(dst, chosen, options))
    if max_file_nbytes is not None and max_file_nbytes <= 0:
        raise ValueError(f"max_file_nbytes must be a positive number of bytes, not {max_file_nbytes!r}")
    manager = CheckpointManager(dst, backend=to or "safetensors", storage_options=options, progress=progress)
    return Place(manager.backend, manager.folder, STEM, step, manager.complete)


def _chosen(dst: str, to: str | Backend | None) -> Backend:
    if isinstance(to, str):
        return _formed(backends.find(to), dst)
    if to is not None:
        return to
    suffixes: dict[str, Backend] = {}
    for name in backends.available():
        try:
            found = _formed(backends.find(name), dst)
        except ImportError:
            continue
        if found.suffix and dst.endswith(found.suffix):
            suffixes[found.suffix] = found
    if not suffixes:
        raise ValueError(f"the ending of {dst!r} is of no installed format: say to=, one of {shown(backends.available())}")
    return suffixes[max(suffixes, key=len)]


def _formed(backend: Backend, dst: str) -> Backend:
    return backend.for_file(dst) if isinstance(backend, Formed) else backend


class Taken(NamedTuple):
    """What is converted: the tensors in their tree, what there is beside them, and why some of that cannot be read."""

    stages: Stages
    bags: Baggage
    unread: Mapping[str, str]


def taken(opened: Checkpoint, rules: Rules) -> Taken:
    """Everything, after the rules, which are recorded. Raises as `partial.refuse`."""
    rest = [rule for rule in rules.rules if not isinstance(rule, Layers)]
    partial.refuse(partial.asked_for(opened.unreadable, rules.select, rest), opened.source, opened.location)
    bags, unread = carrying.baggage(opened)
    stages = staged(opened.source, opened.skeleton, rules.rules, rules.select)
    if stages.record is not None:
        bags = replace(bags, metadata={**bags.metadata, RECORD: stages.record})
    return Taken(stages, bags, unread)


def _taken_for_keras(opened: Checkpoint, rules: Rules) -> Taken:
    """Everything, but of a step of ckptmgr's callbacks for Keras only what Keras' files have a place for."""
    bags, unread = carrying.baggage(opened)
    if not kerasfiles.facts_of(bags):
        return taken(opened, rules)
    return Taken(*kerasfiles.chosen(opened, bags, rules), unread)


@dataclass
class Job:
    """One conversion, from decisions to the report. ``take`` decides what is converted."""

    opened: Checkpoint
    place: Place
    rules: Rules
    take: Callable[[Checkpoint, Rules], Taken] = taken
    sums: dict[str, Sums] = field(default_factory=dict)

    def run(self, *, overwrite: bool, max_file_nbytes: int | None, budget: int, progress: Progress | None) -> ConvertReport:
        """Converts. Raises as `convert`."""

        def run() -> ConvertReport:
            return self._run(overwrite=overwrite, max_file_nbytes=max_file_nbytes, budget=budget, progress=progress)

        return once_more([self.opened.source], run)

    def _run(self, *, overwrite: bool, max_file_nbytes: int | None, budget: int, progress: Progress | None) -> ConvertReport:
        started = time.perf_counter()
        stages, bags, unread = self.take(self.opened, self.rules)
        shape, source = stages.shape, self._view(stages)
        contents, bags, account = self._contents(shape, source, bags, max_file_nbytes)
        account.lost.update(unread)
        layout = self.place.backend.layout(contents, stem=self.place.stem, align=ALIGN)
        beside = [FileLayout(name, (data,)) for name, data in self.place.beside.items()]
        layout = replace(layout, files=(*beside, *layout.files))
        if isinstance(self.opened.source, Summed):
            layout = replace(layout, digests=layout.digests | {"crc32"})
        self._check_place(layout, source, overwrite=overwrite)
        with Stream(source, layout, budget=budget) as stream:

            def check(digests: Mapping[str, Digests]) -> None:
                self.sums = comparing.compare(source, layout, digests)
                self._check_same(stream)

            flat = Flat(
                shape.skeleton,
                {},
                dict(source.specs),
                dict(shape.aliases),
                {name: list(values) for name, values in contents.strings.items()},
                dict(shape.paths),
                {},
            )
            plan = Plan(flat, layout, stream, check)
            files = self._write(plan, bags, overwrite=overwrite, progress=progress)
        stats = Stats(sum(spec.nbytes for spec in source.specs.values()), time.perf_counter() - started, {})
        return self._report(stages, source, account, files, stats)

    def _view(self, stages: Stages) -> TensorSource:
        """The source as it is to be written: this is where further views go."""
        source: TensorSource = Renamed(stages.source, stages.shape.names)
        dtypes = cast_dtypes(self.rules.cast or {}, source.specs)
        return Recast(source, dtypes) if dtypes else source

    def _contents(
        self, shape: Structure, source: TensorSource, bags: Baggage, max_file_nbytes: int | None
    ) -> tuple[Contents, Baggage, Account]:
        parts = [Part(name, spec) for name, spec in source.specs.items()]
        strings = {name: string_values(source.read(name)) for name, spec in source.specs.items() if spec.is_string}
        contents = Contents(
            files=pack(parts, max_file_nbytes),
            aliases=shape.aliases,
            strings=strings,
            paths=shape.paths,
            scalars=shape.scalars,
            skeleton=shape.skeleton,
        )
        packed = carrying.for_file if self.place.step is None else carrying.for_step
        bags, account = packed(bags, _left_out(self.place.backend, contents))
        if self.place.step is not None:
            return replace(contents, blobs=bags.blobs), bags, account
        metadata = dict(bags.metadata)
        if shape.skeleton is not None:
            metadata[SKELETON] = shape.skeleton
            if SKELETON in _left_out(self.place.backend, contents)(Baggage(metadata))[0]:
                account.lost["state tree"] = "the format has names alone"
        return replace(contents, metadata=metadata, blobs=bags.blobs), bags, account

    def _check_place(self, layout: Layout, source: TensorSource, *, overwrite: bool) -> None:
        folder, stem = self.place.folder, self.place.stem
        if self.place.step is not None:
            return  # the commit tells
        there = folder.list().files
        old = {*self.place.backend.file_sets(there).get(stem, ()), *(file.name for file in layout.files)} & there.keys()
        if old and not overwrite:
            names = shown(sorted(folder.location(name) for name in old), 2)
            raise FileExistsError(errno.EEXIST, "there is a checkpoint already: say overwrite=True, or another name", names)
        new = {folder.location(file.name) for file in layout.files}
        read = {extent.folder.location(extent.file) for name in source.specs for extent in source.extents(name)}
        if both := sorted(new & read):
            raise ValueError(f"{both[0]!r} would be overwritten while it is read: convert to another name")

    def _check_same(self, stream: Stream) -> None:
        check_unchanged(stream, self.opened.location)
        source = self.opened.source
        if isinstance(source, Replaceable) and not source.is_same():
            raise CorruptCheckpointError(f"{self.opened.location!r} was replaced while it was read: nothing was converted")

    def _write(self, plan: Plan, bags: Baggage, *, overwrite: bool, progress: Progress | None) -> list[str]:
        place = self.place
        if place.complete is None:
            with _removed_if_it_fails(place.folder, plan.layout):
                written = saving.replace(place.folder, plan, place.backend, stem=place.stem, progress=progress)
            return [place.folder.location(entry.name) for entry in written.files]
        assert place.step is not None
        info = place.complete(Prepared(place.step, plan, bags.metrics, bags.metadata, bags.assets, overwrite))
        return [f"{info.path}/{file.name}" for file in plan.layout.files]

    def _report(
        self, stages: Stages, source: TensorSource, account: Account, files: Sequence[str], stats: Stats
    ) -> ConvertReport:
        shape = stages.shape
        own = Renamed(stages.source, shape.names)
        tensors = []
        for name, spec in source.specs.items():
            before, after, note = self.sums.get(name, Sums(None, None, STRING))
            if spec.dtype != own.specs[name].dtype:
                before, note = comparing.told(own.extents(name), own.specs[name]), f"cast {own.specs[name].dtype} to {spec.dtype}"
            if changed := stages.note(name):
                note = f"{changed}, {note}" if spec.dtype != own.specs[name].dtype else changed
            tensors.append(ConvertedTensor(stages.origin(name), name, spec.dtype, spec.shape, spec.nbytes, before, after, note))
        held = (["state tree"] if shape.skeleton is not None and "state tree" not in account.lost else []) + account.held
        return ConvertReport(
            source=self.opened.location,
            source_backend=self.opened.backend,
            destination=self.place.location,
            backend=self.place.backend.name,
            step=self.place.step,
            files=tuple(files),
            tensors=tuple(tensors),
            aliases=dict(shape.aliases),
            held=tuple(held),
            carried=tuple(account.carried),
            lost=dict(account.lost),
            left_out=(*stages.left_out, *self.opened.unreadable),
            stats=stats,
        )


@contextmanager
def _removed_if_it_fails(folder: Folder, layout: Layout) -> Iterator[None]:
    """Removes those of several new files that a store without staging has let appear, if the last never does."""
    names = [file.name for file in layout.files]
    old = folder.list().files.keys() if len(names) > 1 else names
    try:
        yield
    except BaseException:  # Ctrl-C too: nobody would ever open half a set
        with suppress(OSError):  # the error that ended the conversion is the one to tell
            if names[-1] not in folder.list().files:
                folder.delete([name for name in names if name not in old])
        raise


def _left_out(backend: Backend, contents: Contents) -> Callable[[Baggage], tuple[frozenset[str], frozenset[str]]]:
    def ask(bags: Baggage) -> tuple[frozenset[str], frozenset[str]]:
        return backends.left_out(backend, replace(contents, metadata=bags.metadata, blobs=bags.blobs))

    return ask


def cast_dtypes(cast: Mapping[str, str], specs: Mapping[str, TensorSpec]) -> dict[str, str]:
    """The new dtypes by name, of those that change.

    Raises:
        ValueError: a glob that matches nothing.
        UnsupportedTensorError: an unknown dtype, or a tensor of strings or of packed elements.
    """
    found: dict[str, str] = {}
    for glob, dtype in cast.items():
        numpy_dtype(dtype)
        matched = [name for name in specs if fnmatch.fnmatchcase(name, glob)]
        if not matched:
            raise ValueError(f"cast={glob!r} matches no name")
        for name in matched:
            found.setdefault(name, dtype)
    for name, dtype in found.items():
        spec = specs[name]
        if spec.dtype != dtype and (spec.is_string or spec.is_packed or TensorSpec(dtype, ()).is_string):
            raise UnsupportedTensorError(f"tensor {name!r} of {spec.dtype} cannot be cast to {dtype}", tensor=name)
    return {name: dtype for name, dtype in found.items() if specs[name].dtype != dtype}
