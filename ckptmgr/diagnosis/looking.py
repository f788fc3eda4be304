"""One look at a whole run, by calls that change nothing, and in an order that makes no live save look dead.

The law: the files of a step are listed before its record is read, as `sweep` does, so an attempt that the record does not
name will never be named. What went or came meanwhile is looked at again (`Look.again`) before anything is said of it.
The store is not asked for its time, for which some stores touch a file.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from ckptmgr.errors import CorruptCheckpointError, FormatVersionError
from ckptmgr.finding import Committed
from ckptmgr.ledger import Found
from ckptmgr.manifest import MANIFEST, Manifest, folder_name, parse_attempt
from ckptmgr.naming import StepNaming
from ckptmgr.record import LIMIT_NBYTES, Record, decode, encode
from ckptmgr.sighting import MOST, READERS, sight_of
from ckptmgr.storage import Folder, Head, Marked, MarkingStore, PosixStore, Sight, Version, is_local
from ckptmgr.storage.folders import Root
from ckptmgr.storage.scanning import scan
from ckptmgr.threads import Pool

_EMPTIED_NBYTES = len(encode(Record()))  # no record with anything in it is as short


class Unfinished(NamedTuple):
    """An unfinished write, by its key below the run's folder: its last sign of life, and its size where the store tells it."""

    key: str
    modified: float
    nbytes: int | None = None

    @property
    def attempt(self) -> str | None:
        """The attempt that it is of; None if it is of no attempt's file."""
        parts = self.key.split("/")
        return parse_attempt(parts[1]) if len(parts) == 3 else None


class Listed(NamedTuple):
    """What lies in a step's folder: the record, files by attempt (one level), and names that are not of our grammar."""

    record: Head | None = None
    attempts: Mapping[str, Mapping[str, Head]] = {}
    others: Sequence[str] = ()
    closed: OSError | None = (
        None  # it, or an attempt's folder in it, could not be listed, or a file of it not be read, or a file not be read
    )


class StepFolder(NamedTuple):
    """A folder with the name of a step: what lies there, and its record, or why there is none to be read."""

    name: str
    step: int
    listed: Listed
    record: Record | None = None
    version: Version = None
    data: bytes = b""
    trouble: CorruptCheckpointError | FormatVersionError | OSError | None = None

    @property
    def manifest(self) -> Manifest | None:
        """The manifest, if the step is committed."""
        return self.record.manifest if self.record else None

    @property
    def place(self) -> str:
        """The folder of the committed files, below the run's."""
        return f"{self.name}/{folder_name(self.manifest.attempt)}" if self.manifest else self.name

    def committed(self, root: Folder) -> Committed:
        """The step, for whoever opens it."""
        assert self.record
        assert self.record.manifest
        found = Found(self.name, self.step, self.record, self.version, self.data)
        info = self.record.manifest.info(self.record.pins, name=self.name, path=root.location(self.place))
        return Committed(found, self.record.manifest, info)


@dataclass(frozen=True, slots=True)
class Look:
    """A run as it was seen. ``files`` and ``folders`` are the run's own, without the folders that have names of steps.

    ``uploads`` are unfinished writes wherever ckptmgr writes.
    """

    root: Folder
    naming: StepNaming
    now: float
    files: Mapping[str, Head]
    folders: Sequence[str]
    steps: Mapping[str, StepFolder]
    uploads: Sequence[Unfinished] = ()

    @property
    def committed(self) -> list[StepFolder]:
        """The committed steps, oldest save first; of two folders for one step the one that was saved last."""
        known = [(each.manifest, each) for each in self.steps.values() if each.manifest]
        chosen: dict[int, StepFolder] = {}
        for manifest, each in sorted(known, key=lambda pair: (pair[0].sequence, pair[0].step, pair[0].attempt)):
            chosen.pop(manifest.step, None)
            chosen[manifest.step] = each
        return [*chosen.values()]

    def size(self, path: str) -> int | None:
        """The size of a step's file by its path below the run's folder, as it was listed."""
        name, place, file = path.split("/", 2)
        listed = self.steps[name].listed if name in self.steps else Listed()
        head = listed.attempts.get(parse_attempt(place) or "", {}).get(file)
        return head.nbytes if head else None

    def uploads_at(self, prefix: str) -> list[Unfinished]:
        """Unfinished writes of files whose keys begin so."""
        return [upload for upload in self.uploads if upload.key.startswith(prefix)]

    def again(self, step: StepFolder) -> StepFolder:
        """The step's folder as it is now."""
        listed, _ = _listed(self.root.folder(step.name), "")
        return _with_record(self.root, step.name, step.step, listed)


def look(root: Folder, naming: StepNaming, now: float) -> Look:
    """Looks at a run. ``now`` is the time that ages are told by, in seconds since the epoch.

    Raises:
        OSError: the run's folder itself cannot be listed.
    """
    below = root.store.below(root.prefix, most=MOST) if isinstance(root.store, MarkingStore) else None
    uploads: list[Unfinished] = []
    if below is None:
        files, names, temporary = _level(root, "")
        uploads += temporary
        known: dict[str, Listed] = {}
    else:
        files, known = _gathered(below)
        names = [*known]
    steps = {name: step for name in names if (step := naming.parse(name)) is not None}
    for name in list(steps) if below is None else ():
        known[name], temporary = _listed(root.folder(name), f"{name}/")
        uploads += temporary
    if not isinstance(root.store, PosixStore):
        with suppress(PermissionError):  # that one may not list them does not make the run sick
            uploads += [Unfinished(each.key.removeprefix(root.prefix), each.modified) for each in root.uploads()]
    begun = {upload.key.partition("/")[0] for upload in uploads if upload.attempt}
    steps.update({name: step for name in sorted(begun) if (step := naming.parse(name)) is not None})

    def read(name: str) -> StepFolder:
        return _with_record(root, name, steps[name], known.get(name, Listed()))

    seen = _all(read, [*steps], READERS if isinstance(root.store, MarkingStore) else 1)
    return Look(root, naming, now, files, [name for name in names if name not in steps], seen, uploads)


def record_at(root: Folder, name: str, step: int | None, head: Head | None) -> tuple[Record | None, Sight | None]:
    """The record in the folder ``name``, and its bytes. ``step`` is the one that it must be of, ``head`` its listing, if any.

    Raises:
        CorruptCheckpointError, FormatVersionError: what is there cannot be decoded.
        OSError: it cannot be read.
    """
    if head is not None and head.nbytes == _EMPTIED_NBYTES:
        return None, None
    where = root.location(f"{name}/{MANIFEST}")
    if head is not None and head.nbytes > LIMIT_NBYTES:
        text = f"the record {where!r} has {head.nbytes} bytes, and a record has at most {LIMIT_NBYTES}"
        raise CorruptCheckpointError(f"{text}: damaged, or not written by ckptmgr", step=step, file=MANIFEST)
    for is_last in (is_local(root.store), True):  # what comes damaged from afar is read once more
        sight = sight_of(root, name)
        if isinstance(sight, OSError):
            raise sight
        try:
            return (decode(sight.data, where=where, step=step), sight) if sight else (None, None)
        except CorruptCheckpointError:
            if is_last:
                raise
    return None, None


def _with_record(root: Folder, name: str, step: int, listed: Listed) -> StepFolder:
    if listed.record is None and listed.closed is None:
        return StepFolder(name, step, listed)
    try:
        record, sight = record_at(root, name, step, listed.record)
    except (CorruptCheckpointError, FormatVersionError, OSError) as error:
        return StepFolder(name, step, listed, trouble=error)
    if sight is None:  # where the folder cannot be listed, a record that is not found may be hidden by that
        return StepFolder(name, step, listed, trouble=listed.closed if listed.record is None else None)
    return StepFolder(name, step, listed, record, sight.version, sight.data)


def _all(read: Callable[[str], StepFolder], names: Sequence[str], readers: int) -> dict[str, StepFolder]:
    """One by one where disks answer at once, or where a client may be for one thread (FTP)."""
    if min(readers, len(names)) < 2:
        return {name: read(name) for name in names}
    with Pool(readers) as pool:
        return dict(zip(names, pool.map(read, names), strict=True))


def _level(folder: Folder, place: str) -> tuple[Mapping[str, Head], Sequence[str], list[Unfinished]]:
    """Files, folders, and unfinished files of one level. A store's `uploads` would go down every folder that anybody made."""
    if not isinstance(folder.store, PosixStore):
        return *folder.list(), []
    files, folders, temporary, *_ = scan(Root(folder.store.location("")), folder.prefix, follow_links=False)
    return files, folders, [Unfinished(f"{place}{name}", head.modified, head.nbytes) for name, head in temporary.items()]


def _listed(folder: Folder, place: str) -> tuple[Listed, list[Unfinished]]:
    try:
        files, folders, uploads = _level(folder, place)
    except OSError as error:
        return Listed(closed=error), []
    closed: OSError | None = None
    attempts: dict[str, Mapping[str, Head]] = {}
    for name in folders:
        if (attempt := parse_attempt(name)) is None:
            continue
        try:
            attempts[attempt], _, temporary = _level(folder.folder(name), f"{place}{name}/")
            uploads += temporary
        except OSError as error:
            closed = error
    others = [*(name for name in files if name != MANIFEST), *(name for name in folders if not parse_attempt(name))]
    return Listed(files.get(MANIFEST), attempts, others, closed), uploads


def _gathered(below: Mapping[str, Marked]) -> tuple[dict[str, Head], dict[str, Listed]]:
    """The run's own files, and what lies in each of its folders, from a listing of all."""
    own: dict[str, Head] = {}
    records: dict[str, Head] = {}
    attempts: dict[str, dict[str, dict[str, Head]]] = {}
    others: dict[str, dict[str, None]] = {}
    for path, file in below.items():
        name, slash, rest = path.partition("/")
        head = Head(file.nbytes, file.modified)
        if name and not slash:
            own[name] = head
        if not name or not slash:
            continue
        first, _, inner = rest.partition("/")
        attempt = parse_attempt(first)
        held, beside = attempts.setdefault(name, {}), others.setdefault(name, {})
        if rest == MANIFEST:
            records[name] = head
        elif attempt:
            held.setdefault(attempt, {}).update({inner: head} if inner and "/" not in inner else {})
        elif first:  # else an object that stands for the folder
            beside[first] = None
    return own, {name: Listed(records.get(name), attempts[name], [*others[name]]) for name in attempts}
