"""The state file: what TensorFlow wrote is understood, and what it names cannot lead out of its folder."""

from math import inf
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ckptmgr.errors import CorruptCheckpointError
from ckptmgr_tf_bundle.origin import Origin
from ckptmgr_tf_bundle.statefile import State, format, parse, relative

GOLDEN = Path(__file__).parents[1] / "golden" / "tf_bundle"
FILES = [GOLDEN / "manager" / "checkpoint", *sorted((GOLDEN / "states").iterdir())]
ORIGIN = Origin("checkpoint", "run/checkpoint")
MEANINGFUL = ["ckpt-1", "é", "😀", '"', "'", "\\", "\n", "\r", "\t", "\0", "\x7f", "\u2028", "#", "\\n", "\\", "7", "x1"]

texts = st.lists(st.sampled_from(MEANINGFUL) | st.text(max_size=2)).map("".join)
seconds = st.floats(allow_nan=False)


@st.composite
def states(draw: st.DrawFn) -> State:
    paths = draw(st.lists(texts, max_size=4))
    timed = draw(st.booleans())
    timestamps = draw(st.lists(seconds, min_size=len(paths), max_size=len(paths))) if timed else []
    return State(draw(texts.filter(bool)), tuple(paths), tuple(timestamps), draw(st.none() | seconds))


def test_file_of_a_checkpoint_manager_says_what_is_kept() -> None:
    data = (GOLDEN / "manager" / "checkpoint").read_bytes()

    state = parse(data, ORIGIN)

    assert state == State(
        "ckpt-5", ("ckpt-3", "ckpt-4", "ckpt-5"), (1700000030.75, 1700000041.0, 1700000051.25), last_preserved=1700000000.0
    )


def test_file_of_a_keras_model_names_the_newest() -> None:
    data = (GOLDEN / "keras_small" / "training_1" / "checkpoint").read_bytes()

    assert parse(data, ORIGIN) == State("cp.ckpt", ("cp.ckpt",))


def test_quotes_backslashes_tabs_and_letters_beyond_ascii_are_understood() -> None:
    data = (GOLDEN / "states" / "escapes").read_bytes()

    assert parse(data, ORIGIN) == State('we"ird\\né\tname-1', ('we"ird\\né\tname-1',), (1700000000.5,), 1.5)


def test_octal_escapes_of_older_writers_are_utf_8() -> None:
    state = parse(rb'model_checkpoint_path: "n\303\251-\360\237\230\200"', ORIGIN)

    assert state.latest == "né-😀"


def test_absolute_paths_stay_as_they_are_written() -> None:
    data = (GOLDEN / "states" / "absolute").read_bytes()

    assert parse(data, ORIGIN).all == ("/elsewhere/run 1/model.ckpt-3", "/elsewhere/run 1/model.ckpt-7")


def test_last_of_several_latest_paths_counts() -> None:
    assert parse(b"model_checkpoint_path: 'a' model_checkpoint_path: 'b'", ORIGIN) == State("b", ())


def test_time_at_zero_is_not_no_time() -> None:
    assert parse(b"model_checkpoint_path: 'a' last_preserved_timestamp: 0", ORIGIN).last_preserved == 0.0


def test_timestamps_of_another_count_than_the_paths_are_left_out() -> None:
    data = b"model_checkpoint_path: 'a' all_model_checkpoint_paths: ['a', 'b'] all_model_checkpoint_timestamps: 1"

    assert parse(data, ORIGIN) == State("a", ("a", "b"))


def test_time_beyond_any_is_infinite() -> None:
    data = b"model_checkpoint_path: 'a' last_preserved_timestamp: 1e999999"

    assert parse(data, ORIGIN).last_preserved == inf


@pytest.mark.parametrize("data", [b"", b" \n# nothing\n", b"all_model_checkpoint_paths: 'a'", b"model_checkpoint_path: ''"])
def test_file_that_names_no_latest_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptCheckpointError, match="names no latest checkpoint") as caught:
        parse(data, ORIGIN)

    assert caught.value.file == "checkpoint"
    assert "'run/checkpoint'" in str(caught.value)


@pytest.mark.parametrize("written", [b"'\xff'", rb"'\377'", rb"'\xc3'", rb"'\ud800'"])
def test_path_that_is_not_utf_8_is_refused(written: bytes) -> None:
    with pytest.raises(CorruptCheckpointError, match="a string is no text"):
        parse(b"model_checkpoint_path: " + written, ORIGIN)


@pytest.mark.parametrize("field", [b"all_model_checkpoint_paths: '\xff'", b"all_model_checkpoint_timestamps: x"])
def test_any_damaged_value_is_refused(field: bytes) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"is no (text|number)"):
        parse(b"model_checkpoint_path: 'a' " + field, ORIGIN)


def test_file_over_16_mib_is_refused() -> None:
    data = b"model_checkpoint_path: 'a'".ljust(16 << 20)

    assert parse(data, ORIGIN).latest == "a"
    with pytest.raises(CorruptCheckpointError, match="16777217 bytes, over the limit of 16777216"):
        parse(data + b" ", ORIGIN)


def test_written_file_has_one_field_a_line() -> None:
    state = State("b", ("a", "b"), (1.5, 1700000051.25), 0.0)

    assert format(state) == (
        b'model_checkpoint_path: "b"\n'
        b'all_model_checkpoint_paths: "a"\n'
        b'all_model_checkpoint_paths: "b"\n'
        b"all_model_checkpoint_timestamps: 1.5\n"
        b"all_model_checkpoint_timestamps: 1700000051.25\n"
        b"last_preserved_timestamp: 0.0\n"
    )


def test_written_path_escapes_what_would_end_it() -> None:
    data = format(State("a\"\\\n\t\r\x00\x1b\x7f1é'", ()))

    assert data == rb'model_checkpoint_path: "a\"\\\n\t\r\000\033\1771' + "é'\"\n".encode()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_tensorflows_own_files_are_written_alike(file: Path) -> None:
    assert format(parse(file.read_bytes(), ORIGIN)) == file.read_bytes()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (State("", ("a",)), "must name one"),
        (State("a", ("a", "b"), (1.0,)), "1 timestamps for 2 paths"),
        (State("a\ud800", ()), "surrogates not allowed"),
    ],
)
def test_state_that_no_file_can_say_is_not_written(state: State, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        format(state)


@given(states())
@example(State("\\303", ("\x001", "\\x41"), (inf, -0.0), -inf))
def test_written_states_are_read_back(state: State) -> None:
    assert parse(format(state), ORIGIN) == state


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("ckpt-1", "ckpt-1"),
        ("sub/ckpt-1", "sub/ckpt-1"),
        ("./sub//./ckpt-1", "sub/ckpt-1"),
        ("..ckpt..", "..ckpt.."),
        ('we"ird\\né-1', 'we"ird\\né-1'),
        ("../ckpt-1", None),
        ("sub/../../ckpt-1", None),
        ("sub/../ckpt-1", None),
        ("..\\ckpt-1", None),
        ("sub\\..\\..\\ckpt-1", None),
        ("ckpt\0-1", None),
        ("..", None),
        (".", None),
        ("sub/", None),
        ("", None),
    ],
)
def test_relative_entry_stands_for_itself_if_it_stays_inside(path: str, expected: str | None) -> None:
    assert relative(path, "/runs/one") == expected


@pytest.mark.parametrize("location", ["/runs/one", "/runs/one/", "/runs//./one"])
def test_absolute_entry_in_the_folder_is_taken_from_there(location: str) -> None:
    assert relative("/runs/one/ckpt-1", location) == "ckpt-1"
    assert relative("/runs/one/sub/ckpt-1", location) == "sub/ckpt-1"


@pytest.mark.parametrize("location", ["/runs/two", "/runs/one/sub", "runs/one", "runs", "", "gs://runs/one", "/runs/on"])
def test_absolute_entry_of_a_moved_folder_is_its_base_name(location: str) -> None:
    assert relative("/runs/one/ckpt-1", location) == "ckpt-1"


def test_base_name_is_looked_for_where_the_way_through_the_folder_is_unsafe() -> None:
    assert relative("/runs/one/../two/ckpt-1", "/runs/one") == "ckpt-1"


def test_folder_that_is_the_root_holds_every_absolute_path() -> None:
    assert relative("/runs/ckpt-1", "/") == "runs/ckpt-1"


def test_url_in_the_folder_is_taken_from_there() -> None:
    assert relative("gs://b/run/sub/ckpt-1", "gs://b/run") == "sub/ckpt-1"


def test_url_elsewhere_is_its_base_name() -> None:
    assert relative("gs://b/run/ckpt-1", "/downloads/run") == "ckpt-1"
    assert relative("gs://b/run/sub/ckpt-1", "s3://b/run") == "ckpt-1"


@pytest.mark.parametrize("path", ["C:\\runs\\ckpt-1", "c:/runs/ckpt-1", "\\\\server\\share\\ckpt-1", "C:\\runs/ckpt-1"])
def test_windows_path_is_its_base_name(path: str) -> None:
    assert relative(path, "/runs/one") == "ckpt-1"


@pytest.mark.parametrize("path", ["/", "/runs/..", "/runs/.", "/runs/one/", "/a\0b", "gs://", "C:\\", "/runs/..\\x"])
def test_absolute_entry_without_a_base_name_stands_for_nothing(path: str) -> None:
    assert relative(path, "/runs/one") is None


@given(st.lists(st.sampled_from(["/", "\\", "..", ".", "a", "runs", "one", "C:", "gs://", "\0"])).map("".join))
@example("/runs/one/C:/a")
def test_no_entry_leads_out_of_the_folder(path: str) -> None:
    found = relative(path, "/runs/one")

    if found is not None:
        assert {"", ".", ".."}.isdisjoint(found.split("/"))
        assert ".." not in found.replace("\\", "/").split("/")
        assert not found.startswith(("\\", "C:/", "C:\\"))
        assert "\0" not in found
