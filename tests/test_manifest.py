"""The manifest's values, and its JSON."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmgr.fields import parse, plain_json
from ckptmgr.manifest import FileEntry, Manifest, Origin, folder_name, is_plain, new_attempt, parse_attempt, this_writer

MANIFEST = Manifest(
    step=1000,
    attempt="3f9a1c2e5b7d0846",
    sequence=7,
    run="r1",
    created=datetime(2026, 2, 28, 23, 59, 59, 123456, UTC),
    backend="safetensors",
    nbytes=30,
    files=(FileEntry("model.safetensors", 20, 0xE3069283), FileEntry("tree.json", 10, 7)),
    metrics={"val_loss": 0.31},
    metadata={"epoch": 3},
    writer={"host": "a", "pid": 1, "ckptmgr": "0.1.0"},
)


def test_manifest_is_the_documented_json() -> None:
    assert MANIFEST.to_json() == {
        "format_version": 1,
        "step": 1000,
        "attempt": "3f9a1c2e5b7d0846",
        "sequence": 7,
        "run": "r1",
        "created": "2026-02-28T23:59:59.123456+00:00",
        "backend": "safetensors",
        "nbytes": 30,
        "files": [
            {"name": "model.safetensors", "nbytes": 20, "crc32c": "e3069283"},
            {"name": "tree.json", "nbytes": 10, "crc32c": "00000007"},
        ],
        "metrics": {"val_loss": 0.31},
        "metadata": {"epoch": 3},
        "writer": {"host": "a", "pid": 1, "ckptmgr": "0.1.0"},
        "crc32c": "f66d21c5",
    }


def test_manifest_comes_back_from_its_json() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_changed_field_of_a_manifest_is_found_by_its_own_crc32c() -> None:
    value = {**MANIFEST.to_json(), "sequence": 8}

    with pytest.raises(ValueError, match="crc32c is not that of its fields"):
        Manifest.from_json(value)


def test_metrics_that_are_not_finite_are_readable_strings() -> None:
    metrics = {"a": math.nan, "b": math.inf, "c": -math.inf}
    manifest = Manifest(1, "0" * 16, 1, "r", datetime.now(UTC), "b", 0, (), metrics)

    value = manifest.to_json()

    assert value["metrics"] == {"a": "NaN", "b": "Infinity", "c": "-Infinity"}
    assert str(Manifest.from_json(value).metrics) == str(metrics)


def test_fields_of_a_later_version_are_kept() -> None:
    entry = FileEntry.from_json({"name": "a", "nbytes": 1, "crc32c": "00000001", "codec": "zstd"})

    assert entry.extra == {"codec": "zstd"}
    assert entry.to_json()["codec"] == "zstd"


def test_reused_file_says_whose_it_is() -> None:
    entry = FileEntry("model.safetensors", 1, 2, Origin(900, "a" * 16, f"900/a-{'a' * 16}/other"))
    manifest = Manifest(1, "0" * 16, 1, "r", datetime.now(UTC), "b", 1, (entry,))

    assert FileEntry.from_json(entry.to_json()) == entry
    assert manifest.refers_to("a" * 16)
    assert not manifest.refers_to("0" * 16)


@pytest.mark.parametrize("path", ["", "../a-{0}/f", "s/a-{0}", "s/a-{0}/..", "s/a-{0}/b/f", "s/a-" + "b" * 16 + "/f", "/a-{0}/f"])
def test_reused_file_lies_in_a_folder_of_its_attempt(path: str) -> None:
    value = {"name": "f", "nbytes": 1, "crc32c": "00000001", "step": 9, "attempt": "a" * 16, "path": path.format("a" * 16)}

    with pytest.raises(ValueError, match="path"):
        FileEntry.from_json(value)


def test_step_info_has_what_the_manifest_says() -> None:
    info = MANIFEST.info(frozenset({"paper"}), name="step-00001000", path="/runs/7/step-00001000/a-3f9a1c2e5b7d0846")

    assert info.order == (7, 1000, "3f9a1c2e5b7d0846")
    assert (info.created, info.metrics, info.pins) == (MANIFEST.created, {"val_loss": 0.31}, {"paper"})


def test_attempts_are_sixteen_digits_and_never_the_same() -> None:
    attempts = [new_attempt() for _ in range(1000)]

    assert len(set(attempts)) == 1000
    assert all(parse_attempt(folder_name(attempt)) == attempt for attempt in attempts)


@pytest.mark.parametrize("name", ["a-", "a-3F9A1C2E5B7D0846", "a-3f9a1c2e5b7d084", "b-3f9a1c2e5b7d0846", "a-3f9a1c2e5b7d0846\n"])
def test_other_folders_are_no_attempts(name: str) -> None:
    assert parse_attempt(name) is None


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", ".hidden", "naïve résumé.txt", "a" * 255])
def test_plain_names_may_stand_in_an_attempt(name: str) -> None:
    assert is_plain(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "a\0", "a\nb", ".ckptmgr-0123456789abcdef.tmp", "é" * 128, "a" * 256, "\ud800"]
)
def test_names_that_lead_elsewhere_or_nowhere_are_not_plain(name: str) -> None:
    assert not is_plain(name)


def test_writer_says_which_process_of_which_host() -> None:
    assert sorted(this_writer()) == ["ckptmgr", "host", "pid"]


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(values)
def test_plain_json_is_its_own_copy(value: object) -> None:
    assert plain_json(value, "metadata") == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, object]}, "metadata/a/1 is"),
        ({"a": {3: 4}}, "metadata/a has the key 3"),
        ({"best": math.inf}, "metadata/best is inf"),
        ({"n": 1 << 5000}, "metadata/n is an integer of 5001 bits"),
    ],
)
def test_metadata_that_is_not_json_is_refused_with_its_place(value: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        plain_json(value, "metadata")


def test_metadata_nested_without_end_is_refused() -> None:
    value: list[object] = []
    value.append(value)

    with pytest.raises(ValueError, match="nested more than 32 levels"):
        plain_json(value, "metadata")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "a": 1}', "'a' is there twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": 1e999}', "out of range"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 65 + b"]" * 65, "nested more than 64"),
        (b"1" * 5000, "is not JSON"),
        (b'"\xff"', "is not JSON"),
        (b"", "is not JSON"),
    ],
)
def test_strict_parser_refuses_what_others_let_through(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)
