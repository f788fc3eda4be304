"""The text file ``checkpoint`` beside TensorFlow checkpoints: which are kept, and which of them is the latest.

The law: ``parse(format(state), origin) == state``. The file holds paths and no data; whoever wrote it may have named any
place, so `relative` tells which of them stand for a checkpoint in the file's own folder.

Source: TensorFlow's checkpoint_state.proto, in protobuf's text format.
"""

import re
from typing import Final, NamedTuple

from ckptmgr_tf_bundle import textformat
from ckptmgr_tf_bundle.origin import Origin

_MAX_NBYTES: Final = 16 << 20
_LATEST, _ALL = b"model_checkpoint_path", b"all_model_checkpoint_paths"
_TIMESTAMPS, _PRESERVED = b"all_model_checkpoint_timestamps", b"last_preserved_timestamp"
_KINDS: Final = {
    _LATEST: textformat.STRING,
    _ALL: textformat.STRING,
    _TIMESTAMPS: textformat.NUMBER,
    _PRESERVED: textformat.NUMBER,
}
_URL_ROOT: Final = re.compile("[A-Za-z][A-Za-z0-9+.-]*://|/")
_WINDOWS_ROOT: Final = re.compile(r"[A-Za-z]:[\\/]|\\")


class State(NamedTuple):
    """What a state file says: paths as they are written there, oldest first; as many timestamps (in seconds), or none."""

    latest: str
    all: tuple[str, ...]
    timestamps: tuple[float, ...] = ()
    last_preserved: float | None = None


def parse(data: bytes, origin: Origin) -> State:
    """The state that a file's bytes say.

    As in TensorFlow, the last of several values of one field counts, and fields of other names are passed over. Timestamps
    that are not as many as the paths are left out, for it is not known whose they are. They need not be finite.

    Raises:
        CorruptCheckpointError: this is no such text, it names no latest checkpoint, or it has over 16 MiB.
    """
    if len(data) > _MAX_NBYTES:
        raise origin.corrupt(f"it has {len(data)} bytes, over the limit of {_MAX_NBYTES} for a state file")
    written: dict[bytes, list[bytes]] = {name: [] for name in _KINDS}
    for name, values in textformat.fields(data, _KINDS, origin):
        written[name] += values
    latest = [textformat.string(value, origin) for value in written[_LATEST]]
    paths = tuple([textformat.string(value, origin) for value in written[_ALL]])
    timestamps = tuple([textformat.number(value, origin) for value in written[_TIMESTAMPS]])
    preserved = [textformat.number(value, origin) for value in written[_PRESERVED]]
    if not latest or not latest[-1]:
        raise origin.corrupt("it names no latest checkpoint (model_checkpoint_path)")
    return State(latest[-1], paths, timestamps if len(timestamps) == len(paths) else (), preserved[-1] if preserved else None)


def format(state: State) -> bytes:
    """The bytes of a state file, UTF-8, one field a line; the same for the same state.

    Raises:
        ValueError: the latest path is empty, a path is no Unicode text, or the timestamps are not as many as the paths.
    """
    if not state.latest:
        raise ValueError("the latest checkpoint has an empty path: a state file must name one")
    if len(state.timestamps) not in (0, len(state.all)):
        raise ValueError(f"{len(state.timestamps)} timestamps for {len(state.all)} paths: give one for each, or none")
    fields = [(_LATEST, textformat.quoted(state.latest))]
    fields += [(_ALL, textformat.quoted(path)) for path in state.all]
    fields += [(_TIMESTAMPS, repr(float(timestamp))) for timestamp in state.timestamps]
    if state.last_preserved is not None:
        fields.append((_PRESERVED, repr(float(state.last_preserved))))
    return "".join([f"{name.decode()}: {value}\n" for name, value in fields]).encode()


def relative(path: str, location: str) -> str | None:
    """The safe path, from the state file's own folder, that an entry stands for; None if there is none.

    A relative entry stands for itself if it stays in the folder. An absolute one (a URL or a Windows path too) that lies in
    ``location``, where the folder is, is taken from there; any other for its base name, as the folder may have been moved.
    Whether anything is there is not looked at.
    """
    root, parts = _split(path)
    if not root:
        return _safe(parts)
    home_root, home = _split(location)
    home = [part for part in home if part not in ("", ".")]
    if root == home_root and parts[: len(home)] == home:
        return _safe(parts[len(home) :]) or _safe(parts[-1:])
    return _safe(parts[-1:])


def _split(path: str) -> tuple[str, list[str]]:
    """What an absolute path starts with ("" for a relative one), and its parts; the last one may be "" or a dot."""
    windows = _WINDOWS_ROOT.match(path)
    found = windows or _URL_ROOT.match(path)
    root = found[0] if found else ""
    parts = re.split(r"[\\/]" if windows else "/", path[len(root) :])
    return root, [part for part in parts[:-1] if part not in ("", ".")] + parts[-1:]


def _safe(parts: list[str]) -> str | None:
    """The parts as a path, unless it could lead elsewhere, on Windows too, or ends with no name."""
    path = "/".join(parts)
    leads_away = ".." in re.split(r"[\\/]", path) or _WINDOWS_ROOT.match(path) or "\0" in path
    return None if leads_away or parts[-1:] in ([], [""], ["."]) else path
