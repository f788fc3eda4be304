"""The record of a step: all that processes must agree on about it, as one small JSON file.

The law: ``decode(encode(record)) == record``, and a changed byte never decodes, because the text ends with the crc32c of
all that is before it. Fields that this version does not know are kept.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from ckptmgr.checksum import crc32c
from ckptmgr.errors import CorruptCheckpointError, FormatVersionError
from ckptmgr.fields import Fields, parse, plain_json
from ckptmgr.manifest import ATTEMPT, FORMAT_VERSION, MANIFEST, Manifest, check_version, new_attempt
from ckptmgr.step import JSON

LIMIT_NBYTES = 4 << 20

_END = re.compile(rb'  "crc32c": "([0-9a-f]{8})"\n}\n')
_END_NBYTES = len(b'  "crc32c": "01234567"\n}\n')


@dataclass(frozen=True, slots=True)
class Claim:
    """The mark of an attempt that may commit; ``number`` tells the tries of one attempt apart."""

    attempt: str
    number: int
    writer: Mapping[str, JSON] = field(default_factory=dict)
    extra: Mapping[str, JSON] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSON]:
        """The claim as a JSON object."""
        return {"attempt": self.attempt, "try": self.number, "writer": plain_json(self.writer, "writer"), **self.extra}

    @classmethod
    def from_json(cls, value: JSON) -> Self:
        """The claim of a JSON object. Raises ValueError."""
        fields = Fields(value, "the claim")
        return cls(fields.matching("attempt", ATTEMPT), fields.count("try"), fields.object("writer"), fields.rest)


@dataclass(frozen=True, slots=True)
class Hold:
    """The files of ``attempt`` must stay, because attempt ``by`` of step ``step`` refers to them."""

    attempt: str
    step: int
    by: str
    extra: Mapping[str, JSON] = field(default_factory=dict, compare=False)

    def to_json(self) -> dict[str, JSON]:
        """The hold as a JSON object."""
        return {"attempt": self.attempt, "step": self.step, "by": self.by, **self.extra}

    @classmethod
    def from_json(cls, value: JSON) -> Self:
        """The hold of a JSON object. Raises ValueError."""
        fields = Fields(value, "a hold")
        attempt, by = fields.matching("attempt", ATTEMPT), fields.matching("by", ATTEMPT)
        return cls(attempt, fields.count("step", most=None), by, fields.rest)


@dataclass(frozen=True, slots=True)
class Record:
    """The one object of a step; every decision about the step is a change of it.

    ``stamp`` is fresh in every put (see `renewed`), so that equal bytes mean the same put.
    """

    stamp: str = field(default_factory=new_attempt)
    manifest: Manifest | None = None
    claim: Claim | None = None
    pins: frozenset[str] = frozenset()
    holds: frozenset[Hold] = frozenset()
    extra: Mapping[str, JSON] = field(default_factory=dict)

    def renewed(self, **changes: Any) -> "Record":
        """This record with these changes, and with a stamp of its own, to be put."""
        return replace(self, stamp=new_attempt(), **changes)

    @property
    def named(self) -> frozenset[str]:
        """The attempts whose files are live. An attempt that is not named can never be named again."""
        own = [each.attempt for each in (self.manifest, self.claim) if each]
        return frozenset([*own, *(hold.attempt for hold in self.holds)])

    @property
    def is_empty(self) -> bool:
        """Whether nothing depends on this record any more."""
        return not (self.manifest or self.claim or self.holds)

    def to_json(self) -> dict[str, JSON]:
        """The record as a JSON object."""
        return {
            "format_version": FORMAT_VERSION,
            "stamp": self.stamp,
            "manifest": self.manifest and self.manifest.to_json(),
            "claim": self.claim and self.claim.to_json(),
            "pins": sorted(self.pins),
            "holds": [hold.to_json() for hold in sorted(self.holds, key=lambda hold: (hold.attempt, hold.step, hold.by))],
            **self.extra,
        }

    @classmethod
    def from_json(cls, value: JSON, *, is_sealed: bool = False) -> Self:
        """The record of a JSON object; ``is_sealed`` is for `Manifest.from_json`. Raises ValueError, FormatVersionError."""
        fields = Fields(value, "the record")
        check_version(fields)
        fields.crc32c("crc32c")
        manifest, claim = fields.optional("manifest"), fields.optional("claim")
        return cls(
            stamp=fields.matching("stamp", ATTEMPT),
            manifest=None if manifest is None else Manifest.from_json(manifest, is_sealed=is_sealed),
            claim=None if claim is None else Claim.from_json(claim),
            pins=frozenset(fields.texts("pins")),
            holds=frozenset(map(Hold.from_json, fields.array("holds"))),
            extra=fields.rest,
        )


def encode(record: Record) -> bytes:
    """The record's file: indented JSON that ends with the crc32c of all bytes before that field's line.

    Raises:
        TypeError, ValueError: metadata that is not plain JSON.
        ValueError: it takes more than `LIMIT_NBYTES`.
    """
    text = json.dumps(record.to_json(), indent=2, allow_nan=False)
    data = seal(text.removesuffix("\n}").encode() + b",\n")
    if len(data) > LIMIT_NBYTES:
        raise ValueError(
            f"the record of the step takes {len(data)} bytes, and at most {LIMIT_NBYTES} are allowed: "
            "use fewer files (a larger max_file_nbytes) or less metadata"
        )
    return data


def decode(data: bytes, *, where: str, step: int | None = None, is_listed: bool = False) -> Record:
    """The record in these bytes, which may be anything. ``where`` is their place, ``step`` the one it must be of.

    With ``is_listed`` the seal alone proves the bytes: to compare the checksum of the manifest in them too takes a sixth of the
    time, and finds only the mistakes of whoever sealed them. To be left to those who rest on the files, not only list them.

    Raises:
        CorruptCheckpointError: they are no record, a damaged one, or the record of another step.
        FormatVersionError: written by a newer ckptmgr.
    """
    try:
        check_seal(data)
        record = Record.from_json(parse(data), is_sealed=is_listed)
    except FormatVersionError as error:
        raise FormatVersionError(f"the record {where!r} {error}", found=error.found, supported=FORMAT_VERSION) from None
    except ValueError as error:
        raise CorruptCheckpointError(f"the record {where!r} {error}", step=step, file=MANIFEST) from error
    if step is not None and record.manifest and record.manifest.step != step:
        raise CorruptCheckpointError(
            f"the record {where!r} is of step {record.manifest.step}, but lies in the folder of step {step}: "
            "the folder was renamed or copied; give it back its name",
            step=step,
            file=MANIFEST,
        )
    return record


def seal(body: bytes) -> bytes:
    """``body``, which is JSON up to the comma and newline before its last field, with that field: its crc32c."""
    return body + b'  "crc32c": "%08x"\n}\n' % crc32c(body)


def check_seal(data: bytes) -> None:
    """Raises ValueError unless ``data`` ends as `seal` ends it."""
    if len(data) > LIMIT_NBYTES:
        raise ValueError(f"has {len(data)} bytes; a record has at most {LIMIT_NBYTES}")
    body, end = data[:-_END_NBYTES], _END.fullmatch(data[-_END_NBYTES:])
    if not end:
        raise ValueError(f"does not end as a record does ({len(data)} bytes): cut off or damaged; restore another step")
    if int(end[1], 16) != crc32c(body):
        raise ValueError(f"has crc32c {crc32c(body):08x}, not {end[1].decode()} as it says: it is damaged; restore another step")
