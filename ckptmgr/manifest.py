"""The manifest of a step: what an attempt saved, and in which files. And the names that attempts and files have.

A step exists exactly when its record has a manifest. A manifest never changes; it carries the crc32c of its own fields,
and fields that this version does not know are kept.
"""

import functools
import json
import math
import os
import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import NamedTuple, Self

from ckptmgr.checksum import crc32c
from ckptmgr.errors import FormatVersionError
from ckptmgr.fields import MAX_INT, Fields, plain_json
from ckptmgr.step import JSON, StepInfo
from ckptmgr.timing import SaveStats

MANIFEST = "manifest.json"  # the name of the record
TREE = "tree.json"
ASSET = "asset"  # the mark of a file that is the user's own
STATS = "stats"  # the field that tells how the save went
FORMAT_VERSION = 1

ATTEMPT = re.compile(r"[0-9a-f]{16}")
_FOLDER = re.compile(r"a-([0-9a-f]{16})")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def new_attempt() -> str:
    """The id of one try to save: 16 random hexadecimal digits, never used twice."""
    return secrets.token_hex(8)


def folder_name(attempt: str) -> str:
    """The name of an attempt's own folder in the step's."""
    return f"a-{attempt}"


def parse_attempt(folder: str) -> str | None:
    """The attempt whose folder has that name, or None if it is no attempt's."""
    match = _FOLDER.fullmatch(folder)
    return match[1] if match else None


def is_plain(name: str) -> bool:
    """Whether a file of that name may stand in an attempt's folder: one level, printable, not a name of ours."""
    if not name or len(name) > 255 or not name.isprintable() or len(name.encode()) > 255:
        return False
    return not ("/" in name or "\\" in name or name in (".", "..") or name.startswith(".ckptmgr"))


def this_writer() -> dict[str, JSON]:
    """Who is saving: the host, the process, and its version of ckptmgr. For people; nothing is decided by it."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "ckptmgr": _version()}


@functools.cache
def _version() -> str:
    return version("ckptmgr")


class Origin(NamedTuple):
    """The step and the attempt that wrote a file which another step refers to, and where it lies below the run's folder."""

    step: int
    attempt: str
    path: str

    @property
    def home(self) -> str:
        """The name of the step's folder."""
        return self.path.partition("/")[0]

    @property
    def is_plain(self) -> bool:
        """Whether the path is that of a file in a folder of the attempt, in a folder in that of the run."""
        home, *below = self.path.split("/")
        return is_plain(home) and len(below) == 2 and below[0] == folder_name(self.attempt) and is_plain(below[1])


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of a step. ``origin`` says where it lies, if not in the folder of the step's own attempt."""

    name: str
    nbytes: int
    crc32c: int
    origin: Origin | None = None
    extra: Mapping[str, JSON] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSON]:
        """The entry as a JSON object."""
        origin = self.origin._asdict() if self.origin else {}
        return {"name": self.name, "nbytes": self.nbytes, "crc32c": f"{self.crc32c:08x}", **origin, **self.extra}

    @classmethod
    def from_json(cls, value: JSON) -> Self:
        """The entry of a JSON object. Raises ValueError."""
        fields = Fields(value, "a file")
        name, nbytes, checksum = fields.text("name"), fields.count("nbytes"), fields.crc32c("crc32c")
        if not is_plain(name):
            fields.refuse("name", name)
        origin = None
        if "attempt" in fields.rest:
            origin = Origin(fields.count("step", most=None), fields.matching("attempt", ATTEMPT), fields.text("path"))
            if not origin.is_plain:
                fields.refuse("path", origin.path)
        return cls(name, nbytes, checksum, origin, fields.rest)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Which step an attempt saved, and in which files. Never changed: whoever knows the attempt knows the manifest.

    ``created`` is an aware UTC datetime. ``metrics`` may be NaN or infinite; ``metadata`` and ``writer`` are plain JSON.
    """

    step: int
    attempt: str
    sequence: int
    run: str
    created: datetime
    backend: str
    nbytes: int
    files: tuple[FileEntry, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    writer: Mapping[str, JSON] = field(default_factory=dict)
    extra: Mapping[str, JSON] = field(default_factory=dict)

    def info(self, pins: frozenset[str], *, name: str, path: str) -> StepInfo:
        """What callers are told of the step; ``name`` is its folder's, ``path`` where its files lie."""
        return StepInfo(
            step=self.step,
            attempt=self.attempt,
            sequence=self.sequence,
            run=self.run,
            created=self.created,
            backend=self.backend,
            nbytes=self.nbytes,
            metrics=self.metrics,
            metadata=self.metadata,
            pins=pins,
            name=name,
            path=path,
            stats=SaveStats.from_json(self.extra.get(STATS)),
        )

    def refers_to(self, attempt: str) -> bool:
        """Whether files of that other attempt belong to this step too."""
        return any(entry.origin.attempt == attempt for entry in self.files if entry.origin)

    def to_json(self) -> dict[str, JSON]:
        """The manifest as a JSON object, with the crc32c of its own canonical text."""
        fields = {
            "format_version": FORMAT_VERSION,
            "step": self.step,
            "attempt": self.attempt,
            "sequence": self.sequence,
            "run": self.run,
            "created": self.created.astimezone(UTC).isoformat(),
            "backend": self.backend,
            "nbytes": self.nbytes,
            "files": [entry.to_json() for entry in self.files],
            "metrics": {name: _metric_to_json(value) for name, value in self.metrics.items()},
            "metadata": plain_json(self.metadata, "metadata"),
            "writer": plain_json(self.writer, "writer"),
            **self.extra,
        }
        return {**fields, "crc32c": f"{_canonical_crc32c(fields):08x}"}

    @classmethod
    def from_json(cls, value: JSON, *, is_sealed: bool = False) -> Self:
        """The manifest of a JSON object. Of one that ``is_sealed`` by a checksum of the whole, its own is not compared.

        Raises ValueError, FormatVersionError.
        """
        fields = Fields(value, "the manifest")
        check_version(fields)
        own = fields.crc32c("crc32c")
        if not is_sealed and own != _canonical_crc32c({**fields.rest, "format_version": value["format_version"]}):
            raise ValueError("has a manifest whose crc32c is not that of its fields")
        manifest = cls(
            step=fields.count("step", most=None),
            attempt=fields.matching("attempt", ATTEMPT),
            sequence=_sequence(fields),
            run=fields.text("run"),
            created=_time(fields.text("created")),
            backend=fields.text("backend"),
            nbytes=fields.count("nbytes"),
            files=tuple(map(FileEntry.from_json, fields.array("files"))),
            metrics={name: _metric(each, name) for name, each in fields.object("metrics").items()},
            metadata=fields.object("metadata"),
            writer=fields.object("writer"),
            extra=fields.rest,
        )
        if len({entry.name for entry in manifest.files}) < len(manifest.files):
            raise ValueError("names a file twice in the manifest")
        return manifest


def check_version(fields: Fields) -> None:
    """Takes the format version; call it before anything else of a newer format is looked at.

    Raises:
        ValueError: there is none.
        FormatVersionError: it is a newer one.
    """
    found = fields.count("format_version")
    if found < 1:
        fields.refuse("format_version", found)
    if found > FORMAT_VERSION:
        text = f"is of format version {found}, and this ckptmgr reads versions up to {FORMAT_VERSION}: upgrade ckptmgr"
        raise FormatVersionError(text, found=found)


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def _canonical_crc32c(fields: Mapping[str, JSON]) -> int:
    return crc32c(_canonical.encode(fields).encode())


def _sequence(fields: Fields) -> int:
    """An integer, which is negative in steps that were adopted."""
    value = fields.optional("sequence")
    if type(value) is not int or abs(value) > MAX_INT:  # exactly: true is no integer
        fields.refuse("sequence", value)
    return value


def _time(text: str) -> datetime:
    try:
        created = datetime.fromisoformat(text)
    except ValueError:
        created = None
    if created is None or created.utcoffset() != timedelta(0):
        raise ValueError(f"was created at {text[:40]!r}, which is no time in UTC")
    return created if created.tzinfo is UTC else created.astimezone(UTC)


def _metric_to_json(value: float) -> JSON:
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _metric(value: JSON, name: str) -> float:
    if type(value) is str and value in _NON_FINITE:
        return _NON_FINITE[value]
    try:
        if type(value) in (int, float):
            return float(value)
    except OverflowError:  # of an integer
        pass
    raise ValueError(f"has the metric {name[:40]!r}, which is no number")
