"""The text format: what protobuf's parser takes too means the same here, and no text costs more than its length."""

import time
import tracemalloc
import warnings
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptmgr.errors import CorruptCheckpointError
from ckptmgr_tf_bundle import textformat
from ckptmgr_tf_bundle.messages import CheckpointState
from ckptmgr_tf_bundle.origin import Origin
from ckptmgr_tf_bundle.textformat import NUMBER, STRING

GOLDEN = Path(__file__).parents[1] / "golden" / "tf_bundle"
FILES = [(GOLDEN / name).read_bytes() for name in ("manager/checkpoint", "states/absolute", "states/escapes")]
ORIGIN = Origin("checkpoint", "run/checkpoint")
MIB = 1 << 20

Meant = dict[str, list[str | float]]

PLAIN = [b'"a"', b"'b'", b'""', b"1.5", b"-2", b"1e9", b"inf", b"nan", b".5f", b"0x1F", b"[", b"]", b"{", b"}", b"<", b">"]
PLAIN += [
    b":",
    b",",
    b";",
    b"#c",
    b"#'\n",
    b" ",
    b"\n",
    b"\t",
    b"\\",
    b"'",
    b'"',
    b"\\n",
    b"\\\\",
    b"\\303\\251",
    b"\\x41",
    b"\\0",
]
PLAIN += [b"[]", b"{}", b"\xc3\xa9", b"\xff", b"other", b"other: 1", b"other { a: [1, {b: 'c'}] }", b"[a.b]", b"-", b".", b"7"]
NAMES = [b"model_checkpoint_path:", b"all_model_checkpoint_paths:", b"all_model_checkpoint_timestamps:"]
PIECES = st.sampled_from([*PLAIN, *NAMES, b"last_preserved_timestamp:"])


def ours(data: bytes) -> Meant:
    kinds = {b"model_checkpoint_path": STRING, b"all_model_checkpoint_paths": STRING}
    kinds |= {b"all_model_checkpoint_timestamps": NUMBER, b"last_preserved_timestamp": NUMBER}
    meant: Meant = {name.decode(): [] for name in kinds}
    for name, values in textformat.fields(data, kinds, ORIGIN):
        meaning = textformat.string if kinds[name] is STRING else textformat.number
        meant[name.decode()] += [meaning(value, ORIGIN) for value in values]
    return meant


def theirs(data: bytes) -> Meant | None:
    """What protobuf's parser finds, or None where it refuses or warns."""
    message = CheckpointState()
    try:
        with warnings.catch_warnings(action="error"):
            text_format.Merge(data.decode(), message, allow_unknown_field=True)
    except (text_format.ParseError, UnicodeDecodeError, DeprecationWarning):
        return None
    return {field.name: [*value] if field.is_repeated else [value] for field, value in message.ListFields()}


def path(data: bytes) -> list[str | float]:
    return ours(b"model_checkpoint_path: " + data)["model_checkpoint_path"]


def times(data: bytes) -> list[str | float]:
    return ours(b"all_model_checkpoint_timestamps: " + data)["all_model_checkpoint_timestamps"]


def test_fields_may_share_a_line_with_and_without_separators() -> None:
    meant = ours(b"model_checkpoint_path:'a'all_model_checkpoint_paths:\"b\", all_model_checkpoint_paths : 'c';")

    assert meant["model_checkpoint_path"] == ["a"]
    assert meant["all_model_checkpoint_paths"] == ["b", "c"]


def test_comments_stand_anywhere_between() -> None:
    assert path(b"# one\n 'a' # 'b'\n#\n 'c' # end") == ["ac"]


def test_comment_sign_in_a_string_is_no_comment() -> None:
    assert path(b"'a # b' '\"' \"'\"") == ["a # b\"'"]


def test_literals_side_by_side_join() -> None:
    assert path(b"\"a\" 'b'\n\"c\"'d'") == ["abcd"]


def test_letter_cut_by_two_literals_is_whole() -> None:
    assert path(rb"'\303' '\251'") == ["é"]


def test_escapes_are_those_of_c() -> None:
    assert path(rb"'\a\b\f\n\r\t\v\\\'\"\?\0\1234\x41\x4g\u00e9\U0001f600'") == ["\a\b\f\n\r\t\v\\'\"?\0S4A\x04gé😀"]


def test_list_is_as_good_as_many_fields() -> None:
    meant = ours(b"all_model_checkpoint_paths: ['a' 'b', 'c'] all_model_checkpoint_paths: []")

    assert meant["all_model_checkpoint_paths"] == ["ab", "c"]


def test_numbers_may_have_signs_exponents_and_a_final_f() -> None:
    assert times(b"[1, -2.5, +.5, 3., 1e3, 2E-1F, 1.5f, inf, -Infinity, 1e999999, 007]") == [
        *(1.0, -2.5, 0.5, 3.0, 1000.0, 0.2, 1.5, float("inf"), -float("inf"), float("inf"), 7.0)
    ]


@pytest.mark.parametrize(
    "field",
    [
        *(b"x: 1", b"x: 'a' \"b\"", b"x: -inf", b"x: WORD", b"7: 1", b"x: []", b"x: [1, 'a', {b: 1}]", b"x {}", b"x: <>"),
        *(
            b"x { y { z: '}' } w: <a: 1; b: 2> }",
            b"x { [type.googleapis.com/c.d] { y: 1 } } ,",
            b"x { # }\n }",
            b"model_checkpoint_paths: 'b'",
        ),
    ],
)
def test_fields_of_other_names_are_passed_over(field: bytes) -> None:
    data = field + b" model_checkpoint_path: 'a' " + field

    assert ours(data)["model_checkpoint_path"] == ["a"]
    assert theirs(data) == {"model_checkpoint_path": ["a"]}


BAD = {
    "no name": (b"'a'", "line 1 should go on with the name of a field, not with b\"'a'\""),
    "no value": (b"\n\nmodel_checkpoint_path: ", "line 3 should go on with a string, not with b''"),
    "no colon": (b"model_checkpoint_path 'a'", "with ':'"),
    "a message": (b"model_checkpoint_path { }", "with ':'"),
    "a number for a string": (b"model_checkpoint_path: 1", "with a string"),
    "a string for a number": (b"last_preserved_timestamp: '1'", "with a number"),
    "no number": (b"last_preserved_timestamp: 1.2.3", "b'1.2.3' is no number"),
    "a hexadecimal number": (b"last_preserved_timestamp: 0x1F", "is no number"),
    "an open string": (b"model_checkpoint_path: 'a", "with a string"),
    "a string over two lines": (b"model_checkpoint_path: 'a\nb'", "with a string"),
    "a string closed by an escape": (b"model_checkpoint_path: 'a\\'", "with a string"),
    "an unknown escape": (b"model_checkpoint_path: '\\q'", "is no escape"),
    "an escape over a byte": (b"model_checkpoint_path: '\\400'", "range"),
    "a letter beyond Unicode": (b"model_checkpoint_path: '\\U00110000'", "range"),
    "an open list": (b"all_model_checkpoint_paths: ['a'", "with ',' or ']'"),
    "a list that ends with a comma": (b"all_model_checkpoint_paths: ['a',]", "with a string"),
    "an extension": (b"[a.b]: 1", "the name of a field"),
    "an open message": (b"x { y: 1", "with '}'"),
    "brackets that cross": (b"x { y < } >", "with a value"),
    "a bracket too many": (b"x { } }", "the name of a field"),
    "a field without a value": (b"x", "with a value"),
    "a closing bracket for a value": (b"x: }", "with a value"),
    "NUL": (b"model_checkpoint_path: 'a'\0", "the name of a field"),
    "UTF-16": ("model_checkpoint_path: 'a'".encode("utf-16"), "the name of a field"),
}


@pytest.mark.parametrize(("data", "words"), BAD.values(), ids=BAD)
def test_what_is_no_text_of_that_format_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(CorruptCheckpointError) as caught:
        ours(data)

    assert words in str(caught.value)
    assert theirs(data) is None


def test_literals_of_more_than_64_kib_are_refused() -> None:
    assert path(b"'%b'" % (b"a" * 65534)) == ["a" * 65534]
    with pytest.raises(CorruptCheckpointError, match="65537 bytes is over the limit of 65536"):
        path(b"'%b'" % (b"a" * 65535))


def filled(nbytes: int, start: bytes, repeated: bytes, end: bytes = b"") -> bytes:
    return start + repeated * ((nbytes - len(start) - len(end)) // len(repeated)) + end


HOSTILE = {
    "unknown fields on one line": (b"", b"a:1 "),
    "unknown fields": (b"", b"a{}\n"),
    "one unknown message": (b"a {", b"a:1 ", b"}"),
    "blanks": (b"", b" "),
    "comments": (b"", b"#\n"),
    "nesting": (b"", b"a{"),
    "closed brackets": (b"a {", b"[]", b"}"),
    "digits": (b"last_preserved_timestamp: ", b"9"),
    "an exponent": (b"last_preserved_timestamp: 1e", b"9"),
    "escapes": (b"model_checkpoint_path: '", b"\\n", b"'"),
    "escapes without an end": (b"x: '", b"\\'"),
    "backslashes": (b"model_checkpoint_path: '", b"\\\\"),
    "literals": (b"model_checkpoint_path: ", b"'' "),
    "literals of nobody": (b"x: ", b"'' "),
    "quotes": (b"", b"'"),
    "a list": (b"all_model_checkpoint_paths: ['a'", b",'ab'", b"]"),
    "paths": (b"", b"all_model_checkpoint_paths:'a'\n"),
    "a name": (b"", b"a"),
}


each_hostile_text = pytest.mark.parametrize("pieces", HOSTILE.values(), ids=HOSTILE)


@each_hostile_text
def test_hostile_text_of_16_mib_costs_little_time(pieces: tuple[bytes, ...]) -> None:
    data = filled(16 * MIB, *pieces)

    started = time.process_time()
    outcome(data)

    assert time.process_time() - started < 2


@each_hostile_text
def test_hostile_text_costs_memory_in_line_with_its_length(pieces: tuple[bytes, ...]) -> None:
    data = filled(MIB // 4, *pieces)

    tracemalloc.start()
    try:
        outcome(data)
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


def outcome(data: bytes) -> Meant | None:
    try:
        return ours(data)
    except CorruptCheckpointError:
        return None


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 12)))
        data[start:stop] = draw(PIECES | st.binary(max_size=3))
    return bytes(data)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """Texts as the format's grammar has them."""
    gap = st.sampled_from([b" ", b"", b"\n", b"\t\r\n", b" # it's\n", b"#\n", b" "])
    letters = st.lists(
        st.sampled_from([b"a", "é".encode(), b" ", b"#", b"\\n", b"\\\\", b"\\'", b'\\"', b"\\303\\251", b"\\x41"])
    )
    literal = st.tuples(st.sampled_from([b"'", b'"']), letters.map(b"".join)).map(lambda pair: pair[0] + pair[1] + pair[0])
    text = st.lists(literal, min_size=1, max_size=3).map(lambda literals: draw(gap).join(literals))
    word = st.sampled_from([b"1", b"-2.5", b"1e3", b"1.5f", b"inf", b"-inf", b"nan", b".5"])
    other = st.sampled_from([b"{ a: 1 }", b"<>", b": 'x' \"y\"", b": -1", b": [1, <b: 'c'>]", b": { a { b: '}' } }", b": WORD"])
    made = []
    for _ in range(draw(st.integers(0, 5))):
        name = draw(st.sampled_from([*NAMES, b"other"]))
        if name == b"other":
            field = b"other" + draw(gap) + draw(other)
        else:
            value = word if b"timestamp" in name else text
            values = draw(
                st.lists(value, max_size=3).map(lambda found: b"[" + b", ".join(found) + b"]") if b"all" in name else value
            )
            field = name[:-1] + draw(gap) + b":" + draw(gap) + values
        made.append(field + draw(gap) + draw(st.sampled_from([b"\n", b" , ", b"; ", b" "])))
    return b"".join(made)


def assert_equal(found: Meant, expected: Meant) -> None:
    # Theirs keeps one of a field that does not repeat, and none of one that is 0 or empty.
    kept = {name: values if name.startswith("all_") else values[-1:] for name, values in found.items()}
    assert repr({name: kept[name] for name in kept if any(kept[name]) or name in expected}) == repr(expected)


def assert_means_what_protobuf_says(data: bytes) -> None:
    """Where both take it: theirs also takes names like ``1.5x``, ours also brackets that hold nothing sensible."""
    found, expected = outcome(data), theirs(data)
    if found is not None and expected is not None:
        assert_equal(found, expected)


@settings(max_examples=5 * settings().max_examples)
@given(documents())
def test_right_texts_mean_what_protobuf_says(data: bytes) -> None:
    expected = theirs(data)

    assert expected is not None
    assert_equal(ours(data), expected)


@settings(max_examples=5 * settings().max_examples)
@given(st.lists(PIECES, max_size=12).map(b"".join))
def test_invented_texts_mean_what_protobuf_says(data: bytes) -> None:
    assert_means_what_protobuf_says(data)


@settings(max_examples=10 * settings().max_examples)
@given(mutated())
def test_mutated_files_mean_what_protobuf_says(data: bytes) -> None:
    assert_means_what_protobuf_says(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    assert_means_what_protobuf_says(data)
