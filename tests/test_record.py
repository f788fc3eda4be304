"""The record's bytes: what is written comes back, and nothing else is ever taken for a record."""

import json
import math
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmgr.errors import CorruptCheckpointError, FormatVersionError
from ckptmgr.manifest import FileEntry, Manifest
from ckptmgr.record import LIMIT_NBYTES, Claim, Hold, Record, decode, encode, seal

attempts = st.text("0123456789abcdef", min_size=16, max_size=16)
names = st.text(min_size=1, max_size=8).filter(str.isprintable).filter(lambda name: not set(name) & {"/", "\\", "."})
numbers = st.integers(0, 2**63 - 1)
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4)
objects = st.dictionaries(
    st.text(max_size=4), st.recursive(leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=4), max_size=3
)
unknown = objects.map(lambda fields: {f"x-{key}": value for key, value in fields.items()})
files = st.builds(FileEntry, names, numbers, st.integers(0, 2**32 - 1), extra=unknown)
manifests = st.builds(
    Manifest,
    step=st.integers(0, 10**30),
    attempt=attempts,
    sequence=numbers,
    run=st.text(max_size=8),
    created=st.datetimes(timezones=st.just(UTC)),
    backend=st.text(max_size=8),
    nbytes=numbers,
    files=st.lists(files, max_size=3, unique_by=lambda entry: entry.name).map(tuple),
    metrics=st.dictionaries(st.text(max_size=4), st.floats(allow_nan=False), max_size=3),
    metadata=objects,
    writer=objects,
    extra=unknown,
)
claims = st.builds(Claim, attempts, numbers, objects, unknown)
holds = st.frozensets(st.builds(Hold, attempts, numbers, attempts, unknown), max_size=3)
records = st.builds(
    Record, attempts, st.none() | manifests, st.none() | claims, st.frozensets(st.text(max_size=8), max_size=3), holds, unknown
)

WHOLE = Record(
    manifest=Manifest(
        5, "a" * 16, 3, "run", datetime(2026, 1, 1, tzinfo=UTC), "safetensors", 9, (FileEntry("f", 9, 1),), {"loss": math.nan}
    ),
    claim=Claim("b" * 16, 2, {"host": "h"}),
    pins=frozenset({"paper", "best"}),
    holds=frozenset({Hold("a" * 16, 6, "c" * 16)}),
)


@given(records)
def test_record_comes_back_from_its_bytes(record: Record) -> None:
    assert decode(encode(record), where="x") == record


@given(records)
def test_unknown_fields_survive_a_change_of_the_record(record: Record) -> None:
    changed = decode(encode(record), where="x").renewed(pins=frozenset({"new"}))

    assert decode(encode(changed), where="x").extra == record.extra


def test_record_reads_well_and_ends_with_its_crc32c() -> None:
    text = encode(Record("0" * 16, pins=frozenset({"b", "a"}))).decode()

    assert text == (
        '{\n  "format_version": 1,\n  "stamp": "0000000000000000",\n  "manifest": null,\n  "claim": null,\n'
        '  "pins": [\n    "a",\n    "b"\n  ],\n  "holds": [],\n  "crc32c": "2da86c09"\n}\n'
    )


def test_every_put_has_its_own_stamp() -> None:
    record = Record()

    assert encode(record.renewed()) != encode(record.renewed())


def test_named_attempts_are_those_of_manifest_claim_and_holds() -> None:
    assert WHOLE.named == {"a" * 16, "b" * 16}
    assert WHOLE.renewed(manifest=None, claim=None).named == {"a" * 16}


@pytest.mark.parametrize("field", ["manifest", "claim", "holds"])
def test_record_with_anything_that_counts_is_not_empty(field: str) -> None:
    assert not Record(**{field: getattr(WHOLE, field)}).is_empty
    assert Record(pins=WHOLE.pins).is_empty  # pins are of the manifest


def test_every_flipped_bit_is_found() -> None:
    data = encode(WHOLE)
    flipped = [data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :] for at in range(len(data)) for bit in range(8)]

    for each in flipped:
        with pytest.raises(CorruptCheckpointError, match=r"the record 'step-5/manifest\.json'"):
            decode(each, where="step-5/manifest.json", step=5)


def test_every_truncation_is_found() -> None:
    data = encode(WHOLE)

    for end in range(len(data)):
        with pytest.raises(CorruptCheckpointError):
            decode(data[:end], where="x")


def test_bytes_after_the_end_are_found() -> None:
    with pytest.raises(CorruptCheckpointError):
        decode(encode(WHOLE) + b"\n", where="x")


def test_record_in_the_folder_of_another_step_is_refused_by_both_numbers() -> None:
    with pytest.raises(CorruptCheckpointError, match=r"of step 5, but lies in the folder of step 6.*renamed or copied"):
        decode(encode(WHOLE), where="x", step=6)


def test_claim_without_manifest_fits_every_step() -> None:
    record = Record(claim=WHOLE.claim)

    assert decode(encode(record), where="x", step=6) == record


def test_record_of_a_newer_format_is_refused_by_number() -> None:
    data = resealed(lambda fields: {**fields, "format_version": 2, "manifest": "something else altogether"})

    with pytest.raises(FormatVersionError, match=r"'x' is of format version 2.* up to 1: upgrade ckptmgr") as caught:
        decode(data, where="x")
    assert (caught.value.found, caught.value.supported) == (2, 1)


def test_manifest_of_a_newer_format_is_refused_by_number() -> None:
    data = resealed(lambda fields: {**fields, "manifest": {"format_version": 3}})

    with pytest.raises(FormatVersionError, match="format version 3"):
        decode(data, where="x")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format_version", 0),
        ("format_version", True),
        ("stamp", "XYZ"),
        ("stamp", None),
        ("manifest", []),
        ("claim", {"attempt": "../../../../etc/", "try": 1, "writer": {}}),
        ("claim", {"attempt": "a" * 16, "try": -1, "writer": {}}),
        ("claim", {"attempt": "a" * 16, "try": 1.0, "writer": {}}),
        ("pins", ["a", 1]),
        ("pins", {}),
        ("holds", [{"attempt": "a" * 16, "step": 1}]),
        ("holds", [None]),
    ],
)
def test_field_of_a_wrong_kind_is_refused(field: str, value: object) -> None:
    with pytest.raises(CorruptCheckpointError):
        decode(resealed(lambda fields: {**fields, field: value}), where="x")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", -1),
        ("step", "5"),
        ("attempt", "A" * 16),
        ("sequence", 2**63),
        ("created", "yesterday"),
        ("created", "2026-01-01T00:00:00"),
        ("created", "2026-01-01T00:00:00+01:00"),
        ("nbytes", 1.5),
        ("files", [{"name": "../f", "nbytes": 1, "crc32c": "00000001"}]),
        ("files", [{"name": "f", "nbytes": 2**63, "crc32c": "00000001"}]),
        ("files", [{"name": "f", "nbytes": 1, "crc32c": "1"}]),
        ("files", [{"name": "f", "nbytes": 1, "crc32c": "00000001"}] * 2),
        ("files", [{"name": "f", "nbytes": 1, "crc32c": "00000001", "step": 1, "attempt": ".."}]),
        ("metrics", {"loss": "big"}),
        ("metrics", {"loss": True}),
        ("metrics", {"loss": 10**400}),
        ("metadata", []),
        ("writer", None),
    ],
)
def test_field_of_a_manifest_that_cannot_be_is_refused(field: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptmgr.manifest._canonical_crc32c", lambda fields: 0)
    data = resealed(lambda fields: {**fields, "manifest": {**fields["manifest"], field: value}})

    with pytest.raises(CorruptCheckpointError):
        decode(data, where="x")


mutations = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("a" * 16) | st.just(10**4000),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@given(st.data())
def test_no_mutation_of_the_fields_raises_anything_but_our_errors(data: st.DataObject) -> None:
    fields = WHOLE.to_json()
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(fields, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ckptmgr.manifest._canonical_crc32c", lambda fields: 0xAAAAAAAA)

        try:
            record = decode(sealed(fields), where="x")
        except (CorruptCheckpointError, FormatVersionError):
            return
        assert decode(encode(record), where="x").named == record.named


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_our_errors(data: bytes) -> None:
    for each in (data, seal(data), seal(b'{"format_version": 1, "stamp": ' + data + b",\n")):
        with pytest.raises((CorruptCheckpointError, FormatVersionError)):
            decode(each, where="x")


def test_record_over_the_limit_is_refused_when_it_is_written_and_when_it_is_read() -> None:
    with pytest.raises(ValueError, match="larger max_file_nbytes"):
        encode(Record(extra={"x": "a" * LIMIT_NBYTES}))
    with pytest.raises(CorruptCheckpointError, match="at most"):
        decode(seal(b" " * LIMIT_NBYTES), where="x")


def test_largest_hostile_record_takes_little_time_and_memory() -> None:
    bodies = [b"[" * (LIMIT_NBYTES - 30), b'{"a":' * (LIMIT_NBYTES // 5 - 30), b"[" + b"9" * (LIMIT_NBYTES - 40) + b"]"]

    tracemalloc.start()
    for body in bodies:
        with pytest.raises(CorruptCheckpointError):
            decode(seal(body), where="x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 16 * LIMIT_NBYTES


def test_times_are_kept_to_the_microsecond_and_in_utc() -> None:
    created = datetime(2026, 6, 1, 2, 3, 4, 5, UTC).astimezone(tz=None) + timedelta(0)
    manifest = Manifest(1, "a" * 16, 1, "r", created, "b", 0, ())

    found = decode(encode(Record(manifest=manifest)), where="x").manifest

    assert found is not None
    assert found.created == created
    assert found.created.tzinfo is UTC


def resealed(edit: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    return sealed(edit(WHOLE.to_json()))


def sealed(fields: dict[str, Any]) -> bytes:
    return seal(json.dumps(fields, indent=2).removesuffix("\n}").encode() + b",\n")


def mutate(value: Any, data: st.DataObject) -> None:
    """One change somewhere in the tree: a field replaced, taken out or put in."""
    if isinstance(value, dict) and value:
        key = data.draw(st.sampled_from(sorted(value)))
        if isinstance(value[key], dict | list) and value[key] and data.draw(st.booleans()):
            mutate(value[key], data)
        elif data.draw(st.booleans()):
            value[key] = data.draw(mutations)
        else:
            value[data.draw(st.text(max_size=4))] = value.pop(key)
    elif isinstance(value, list) and value:
        at = data.draw(st.integers(0, len(value) - 1))
        if isinstance(value[at], dict | list) and value[at] and data.draw(st.booleans()):
            mutate(value[at], data)
        else:
            value[at] = data.draw(mutations)
