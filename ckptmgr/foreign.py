"""Checkpoints that other tools wrote into the folder of a run: steps to read, and never to change.

A file set of an installed format is a step if its stem means one, by the run's own naming or by the usual ones of other
tools; and so is a folder with such a name, as ``checkpoint-500``, for the weights in it. Names and a listing tell all that is
known of it; the law: nothing here writes or deletes.
"""

import itertools
import logging
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from ckptmgr import backend as backends
from ckptmgr.backend import Backend, RunFiles
from ckptmgr.checkpoint import Checkpoint, open_files
from ckptmgr.errors import CorruptCheckpointError, StepNotFoundError
from ckptmgr.naming import StepNaming, parse_foreign
from ckptmgr.step import StepInfo
from ckptmgr.storage import Folder, Head
from ckptmgr.transfer import Verify

log = logging.getLogger(__name__)
T = TypeVar("T")


# What the weights are called in a folder that has more than them, the likeliest first: Transformers, PEFT, Diffusers.
WEIGHTS = ("model", "pytorch_model", "adapter_model", "diffusion_pytorch_model", "weights")


class FileSet(NamedTuple):
    """The files of one checkpoint of a run, in the order in which they were written: the last is the one to open.

    They lie in the run's folder itself, or in the one ``inside`` it, with others ``beside`` them. Where that folder ``is_whole``,
    it is the checkpoint itself, of a format that is no set of files.
    """

    step: int
    stem: str
    backend: Backend
    files: Mapping[str, Head]
    inside: str = ""
    beside: Mapping[str, Head] = MappingProxyType({})
    is_whole: bool = False


class Foreign(NamedTuple):
    """A step that another tool wrote: its files as they were listed, and what a user sees of it.

    Where it has a folder of its own, that is ``inside`` the run's, and ``beside`` are the other files there; see `FileSet`.
    """

    backend: Backend
    files: Mapping[str, Head]
    info: StepInfo
    inside: str = ""
    beside: Mapping[str, Head] = MappingProxyType({})
    is_whole: bool = False

    @property
    def key(self) -> Hashable:
        """What tells it from everything else that has been, or will be, this step."""
        return self.backend.name, self.info.name, tuple(self.files.items())

    @property
    def main(self) -> str:
        """The file to open, or ``""`` for the folder."""
        return "" if self.is_whole else [*self.files][-1]

    def place(self, folder: Folder) -> Folder:
        """Where its files lie, in a run of that folder."""
        return folder.folder(self.inside) if self.inside else folder

    def is_there(self, folder: Folder) -> bool:
        """Whether all its files still are as they were listed in the run's folder."""
        place = self.place(folder)
        return all(place.head(name) == head for name, head in self.files.items())


def folder_sets(
    folder: Folder, naming: StepNaming, folders: Collection[str], own: Backend | None = None, *, only: int | None = None
) -> Iterator[FileSet]:
    """The checkpoints in those of the folders whose names mean a step (the step ``only``), in any order. Each is listed."""
    for name in folders:
        step = naming.parse(name)
        step = parse_foreign(name) if step is None else step
        if step is None or only not in (None, step) or not name.isprintable():
            continue
        listing = folder.folder(name).list().files
        sets = [
            (stem, backend, names)
            for backend in (installed(own) if listing else ())
            for stem, names in backend.file_sets(listing).items()
            if names[-1] in listing and stem.isprintable()
        ]
        # Of several the one that is the model by its name; the only one, if the folder is surely a step's.
        likely = sorted((each for each in sets if each[0] in WEIGHTS), key=lambda each: WEIGHTS.index(each[0]))
        if chosen := likely or (sets if len(sets) == 1 and not name.isdecimal() else []):
            _, backend, names = chosen[0]
            files = {each: listing[each] for each in names if each in listing}
            beside = {each: head for each, head in listing.items() if each not in files}
            yield FileSet(step, name, backend, files, name, beside)
        elif not sets:
            for backend in installed(own) if listing else ():
                if backend.recognizes(name, b"", listing):
                    yield FileSet(step, name, backend, dict(listing), name, is_whole=True)
                    break


def file_sets(folder: Folder, naming: StepNaming, files: Mapping[str, Head], own: Backend | None = None) -> Iterator[FileSet]:
    """The checkpoints among the files of the run's folder whose stem means a step, in any order. Nothing is read.

    ``own`` is looked for instead of the installed backend of its name. A set that lacks its last file is none.
    """
    for backend in installed(own) if files else ():
        for stem, names in backend.file_sets(files).items():
            step = naming.parse(stem)
            step = parse_foreign(stem) if step is None else step
            # What cannot be shown could not be told to other tools either.
            if step is not None and names[-1] in files and stem.isprintable():
                yield FileSet(step, stem, backend, {name: files[name] for name in names if name in files})


def find(
    folder: Folder,
    naming: StepNaming,
    files: Mapping[str, Head],
    *,
    folders: Collection[str] = (),
    own: Backend | None = None,
    taken: Collection[int] = (),
    below: int = 0,
) -> list[Foreign]:
    """The steps among the files and ``folders`` in the run's folder, but for the numbers in ``taken``, oldest first.

    Their sequences are the last integers before ``below``.
    Those that a format's own hints name are the newest, in the order of the hints; before them the others by step. Of two for
    one step the newer counts, and a warning is logged.
    """
    found = itertools.chain(file_sets(folder, naming, files, own), folder_sets(folder, naming, folders, own))
    sets = [each for each in found if each.step not in taken]
    ranks = _ranks(folder, sets)
    chosen: dict[int, FileSet] = {}
    for each in sorted(sets, key=lambda each: (ranks.get(_name(each), -1), each.step, *_name(each))):
        older = chosen.pop(each.step, None)
        chosen[each.step] = each
        if older is not None:
            text = "step %d is in %r as %r (%s) and as %r (%s): the latter is taken"
            log.warning(text, each.step, folder.location(), *_name(older), *_name(each))
    return [
        Foreign(each.backend, each.files, _info(folder, each, sequence), each.inside, each.beside, each.is_whole)
        for sequence, each in enumerate(chosen.values(), below - len(chosen))
    ]


def installed(own: Backend | None = None) -> list[Backend]:
    """All backends that can be used: ``own``, and those installed under other names whose packages are there."""
    found = [] if own is None else [own]
    for name in backends.available():
        if own is None or name != own.name:
            try:
                found.append(backends.find(name))
            except ImportError as error:
                log.debug("steps of backend %r are not looked for: %s", name, error)
    return found


def use(folder: Folder, step: Foreign, verify: Verify, make: Callable[[Checkpoint], T]) -> T:
    """What ``make`` makes of the opened step.

    Raises:
        CorruptCheckpointError: it is damaged, or lacks a file.
        StepNotFoundError: it was removed or replaced meanwhile.
    """
    with explained(folder, step):
        opened = open_files(step.backend, step.place(folder), step.main, verify=verify)
        opened.info = step.info
        return make(opened)


@contextmanager
def explained(folder: Folder, step: Foreign) -> Iterator[None]:
    """Tells damage in the step's files from files that somebody removed or replaced while they were read."""
    try:
        yield
    except (CorruptCheckpointError, FileNotFoundError, EOFError) as error:
        number, where = step.info.step, step.info.path
        if not step.is_there(folder):
            text = f"step {number}, {where!r} of another tool, was removed or replaced while it was read: open it again"
            raise StepNotFoundError(text, step=number) from error
        if isinstance(error, CorruptCheckpointError):
            error.step = number
            raise
        text = f"step {number}, {where!r} of another tool, is not whole: {error}"
        raise CorruptCheckpointError(text, step=number, file=step.main) from error


def _ranks(folder: Folder, sets: Collection[FileSet]) -> dict[tuple[str, str], int]:
    """The places, from 0 on, of those sets that hints name."""
    hinting = {each.backend.name: each.backend for each in sets if isinstance(each.backend, RunFiles)}
    orders = [[(stem, name) for stem in it.run_order(folder)] for name, it in hinting.items() if isinstance(it, RunFiles)]
    return {name: rank for rank, name in enumerate(itertools.chain.from_iterable(orders))}


def _name(files: FileSet) -> tuple[str, str]:
    return files.stem, files.backend.name


def _info(folder: Folder, files: FileSet, sequence: int) -> StepInfo:
    return StepInfo(
        step=files.step,
        attempt="",
        sequence=sequence,
        run="",
        created=datetime.fromtimestamp(max(head.modified for head in files.files.values()), UTC),
        backend=files.backend.name,
        nbytes=sum(head.nbytes for head in files.files.values()),
        name=files.stem,
        path=folder.location(files.stem),
        is_foreign=True,
    )
