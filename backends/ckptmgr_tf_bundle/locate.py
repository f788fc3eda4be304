"""From what a user names to the prefix of a checkpoint: a prefix, one of its files, a folder with a state file, a SavedModel.

The law: nothing outside the folder that was named is ever opened, whatever a ``checkpoint`` file says.

Source: TensorFlow's checkpoint_management.py (`latest_checkpoint`) and loader_impl.py.
"""

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from ckptmgr.backend import Folder
from ckptmgr.errors import BackendNotFoundError, CorruptCheckpointError, shown
from ckptmgr_tf_bundle import statefile
from ckptmgr_tf_bundle.origin import Origin

INDEX = ".index"
STATE = "checkpoint"
SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")
V1_TAIL = bytes.fromhex("57fb808b247547db")  # a whole V1 checkpoint is one table, and ends like every table

_DATA = re.compile(r"(?P<stem>.+)\.data-[0-9]{5,}-of-[0-9]{5,}", re.DOTALL)
_STATE_NBYTES = 4 << 20
_BELOW, _DEPTH = 100, 64  # of a state file's entries that lie in other folders: how many are looked for, and how deep
# A V1 file is one table, whose first value is one long field 1 under the empty key.
_V1_HEAD = re.compile(rb"\x00\x00[\x80-\xff]{0,4}[\x01-\x7f]\x0a", re.DOTALL)


class Place(NamedTuple):
    """The prefix of a checkpoint's files, and the folder it lies in."""

    folder: Folder
    prefix: str


def stem_of(name: str) -> str | None:
    """The prefix that a file of that name belongs to, or None if it is no checkpoint's."""
    if name.endswith(INDEX) and name != INDEX:
        return name.removesuffix(INDEX)
    match = _DATA.fullmatch(name)
    return match["stem"] if match else None


def file_sets(names: Collection[str]) -> Mapping[str, Sequence[str]]:
    """Of each prefix the data files that are there, and its index last, whether it is there or not."""
    sets: dict[str, list[str]] = {}
    for name in sorted(names):
        if (stem := stem_of(name)) is not None:
            sets.setdefault(stem, []).extend([] if name.endswith(INDEX) else [name])
    return {stem: [*data, stem + INDEX] for stem, data in sets.items()}


def recognizes(path: str, head: bytes, siblings: Collection[str]) -> bool:
    """Whether this is a checkpoint of TensorFlow's, or leads to one; see `Backend.recognizes`."""
    if f"{path}{INDEX}" in siblings and path:
        return True
    if not head:
        return path not in siblings and _is_folder_of_ours(siblings)
    if path == STATE:
        return b"model_checkpoint_path" in head
    if path in SAVED_MODEL:
        return True
    stem = stem_of(path)
    if stem is None:
        return head.endswith(V1_TAIL) or bool(_V1_HEAD.match(head))
    # An index begins with the header's empty key; in a snappy block something comes before that.
    return f"{stem}{INDEX}" in siblings and (head.startswith(b"\x00\x00") or any(map(_DATA.fullmatch, siblings)))


def _is_folder_of_ours(names: Collection[str]) -> bool:
    # A state file alone is not enough: in a run of ours it leads into a step, whose own record says more than that file.
    return any(name in names for name in SAVED_MODEL) or any(files[-1] in names for files in file_sets(names).values())


def find(folder: Folder, path: str) -> Place:
    """The checkpoint that ``path`` in ``folder`` means; ``""`` is the folder itself.

    Raises:
        FileNotFoundError: there is none, or several and nothing says which is the latest.
        CorruptCheckpointError: only a state file could say, and it is damaged.
        BackendNotFoundError: a checkpoint of TensorFlow's first format, which is not read.
    """
    files = folder.list().files
    if path and (f"{path}{INDEX}" in files):
        return Place(folder, path)
    if path in files:
        return _of_file(folder, path, files)
    inside = folder.folder(path) if path else folder
    return _of_folder(inside, inside.list().files if path else files)


def state_of(folder: Folder) -> statefile.State | None:
    """What the state file in a folder says; None if there is none.

    Raises:
        CorruptCheckpointError: it cannot be read.
    """
    head = folder.head(STATE)
    if head is None:
        return None
    origin = Origin(STATE, folder.location(STATE))
    if head.nbytes > _STATE_NBYTES:
        raise origin.corrupt(f"a state file of {head.nbytes} bytes is over the limit of {_STATE_NBYTES}")
    try:
        return statefile.parse(folder.read_range(STATE, 0, head.nbytes), origin)
    except EOFError as error:
        raise origin.corrupt("it was cut off while it was read") from error


def stems_in(state: statefile.State, folder: Folder) -> list[str]:
    """The prefixes that a state file names, relative to its folder, oldest first and each once; those outside are left out."""
    paths = (statefile.relative(path, folder.location()) for path in (*state.all, state.latest))
    oldest_last = dict.fromkeys(path for path in reversed([*paths]) if path is not None)
    return [*reversed(oldest_last)]


def _of_file(folder: Folder, path: str, files: Collection[str]) -> Place:
    if path == STATE:
        return _of_folder(folder, files)
    if path in SAVED_MODEL:
        return Place(folder.folder("variables"), "variables")
    stem = stem_of(path)
    if stem is not None:
        return Place(folder, stem)
    head = folder.head(path)
    size = head.nbytes if head else 0
    if folder.read_range(path, max(size - len(V1_TAIL), 0), min(size, len(V1_TAIL))) == V1_TAIL:
        raise BackendNotFoundError(
            f"{folder.location(path)!r} is a checkpoint of TensorFlow's first format (one file, before 2017), which is not read: "
            "restore it with tf.compat.v1.train.Saver and save it again",
            available=[],
        )
    raise Origin(path, folder.location(path)).corrupt("it is no index, no data file and no state file")


def _of_folder(folder: Folder, files: Collection[str]) -> Place:
    if any(name in files for name in SAVED_MODEL):
        return Place(folder.folder("variables"), "variables")
    trouble: CorruptCheckpointError | None = None
    try:
        state = state_of(folder) if STATE in files else None
    except CorruptCheckpointError as error:
        state, trouble = None, error
    if state is not None and (latest := _newest_there(folder, files, stems_in(state, folder))):
        return latest
    stems = [stem for stem in file_sets(files) if stem + INDEX in files]
    if len(stems) == 1:
        return Place(folder, stems[0])
    if trouble is not None:
        raise trouble
    if not stems:
        raise FileNotFoundError(f"no TensorFlow checkpoint in {folder.location()!r}")
    raise FileNotFoundError(
        f"{folder.location()!r} has several checkpoints ({shown(stems)}), and no state file that names the latest of them: "
        f"open one by its prefix, as {folder.location(stems[-1])!r}"
    )


def _newest_there(folder: Folder, files: Collection[str], stems: Sequence[str]) -> Place | None:
    """The newest of the prefixes whose index is there; of those in folders below, only few are looked for."""
    below = 0
    for stem in reversed(stems):
        *folders, prefix = stem.split("/")
        if not folders and prefix + INDEX in files:
            return Place(folder, prefix)
        below += bool(folders)
        if folders and below <= _BELOW and len(folders) <= _DEPTH:
            inside = functools.reduce(Folder.folder, folders, folder)
            if inside.head(prefix + INDEX) is not None:
                return Place(inside, prefix)
    return None
