"""`tree.json`: every row comes back, and nothing that is not a tree is ever taken for one."""

import itertools
import json
import math
import random
import time
import tracemalloc
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmgr.box import Box
from ckptmgr.errors import CorruptCheckpointError, FormatVersionError
from ckptmgr.spec import TensorSpec
from ckptmgr.treefile import Row, TreeFile, TreeText

DTYPES = ["float32", "bfloat16", "float8_e4m3fn", "bool", "complex128", "int4", "datetime64[D]", "timedelta64[25s]"]
names = st.text(max_size=12)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
specs = st.builds(TensorSpec, st.sampled_from(DTYPES), shapes)
checksums = st.none() | st.integers(0, 2**32 - 1)
offsets = st.none() | st.integers(0, 2**63 - 1)
files = st.sampled_from(["model.safetensors", "model-00001-of-00002.safetensors", "ü.h5"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=5), json_values, max_size=3)

TREE = TreeFile(
    {"w": {"$tensor": "w"}, "b": {"$tensor": "b"}},
    [
        Row("w", TensorSpec("bfloat16", (4, 8)), "model.safetensors", 0, 123),
        Row("b", TensorSpec("float32", (4,)), "model.safetensors", 64, None, Box((0,), (2,))),
        Row("b", TensorSpec("float32", (4,)), "more.safetensors", 0, 9, Box((2,), (4,))),
        Row("s", TensorSpec("string", (2,)), "more.safetensors", None, None),
    ],
    {"tied": "w"},
    {"k": [1]},
)


@st.composite
def trees(draw: st.DrawFn) -> TreeFile:
    rows: list[Row] = []
    for name in draw(st.lists(names, max_size=5, unique=True)):
        spec = draw(specs)
        boxes = [None] if draw(st.booleans()) else halves(spec)
        rows += [Row(name, spec, draw(files), draw(offsets), draw(checksums), box) for box in boxes]
    taken = {row.name for row in rows}
    aliases = draw(st.dictionaries(names.filter(lambda name: name not in taken), st.sampled_from(sorted(taken)))) if taken else {}
    return TreeFile(draw(json_values), rows, aliases, draw(objects))


def halves(spec: TensorSpec) -> list[Box]:
    if not spec.shape:
        return [Box((), ())]
    half, rest = spec.shape[0] // 2, spec.shape[1:]
    zeros = (0,) * len(rest)
    return [Box((0, *zeros), (half, *rest)), Box((half, *zeros), spec.shape)]


@given(trees())
def test_tree_comes_back_from_its_bytes(tree: TreeFile) -> None:
    assert TreeFile.decode(tree.encode(), where="x") == tree


def test_tensors_stand_in_columns_and_a_line_has_those_of_one_file() -> None:
    assert TREE.encode().decode() == (
        '{\n"format_version": 1,\n"kinds": [\n["bfloat16",[4,8],64],\n["float32",[4],16],\n["string",[2],0]\n],\n'
        '"aliases": {"tied":"w"},\n"metadata": {"k":[1]},\n"skeleton": {"w":{"$tensor":"w"},"b":{"$tensor":"b"}},\n"tensors": [\n'
        '{"file":"model.safetensors","names":["w"],"kinds":[0],"offsets":[0],"crc32c":[123]},\n'
        '{"file":"model.safetensors","names":["b"],"kinds":[1],"offsets":[64],"crc32c":[null],"starts":[[0]],"stops":[[2]]},\n'
        '{"file":"more.safetensors","names":["b"],"kinds":[1],"offsets":[0],"crc32c":[9],"starts":[[2]],"stops":[[4]]},\n'
        '{"file":"more.safetensors","names":["s"],"kinds":[2],"offsets":[null],"crc32c":[null]}\n]\n}\n'
    )


def test_a_line_has_few_hundred_tensors_so_that_one_is_found_quickly() -> None:
    tree = TreeFile({}, [Row(f"t{n}", TensorSpec("int8", (1,)), "f", n, n) for n in range(1000)])

    lines = tree.encode().splitlines()

    assert max(line.count(b'"t') for line in lines) == 256
    assert TreeFile.decode(tree.encode(), where="x") == tree


def test_equal_specs_are_one_object() -> None:
    rows = [Row(name, TensorSpec("float32", (3,)), "f", 0, 0) for name in "ab"]

    first, second = TreeFile.decode(TreeFile({}, rows).encode(), where="x").rows

    assert first.spec is second.spec


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_tensors_that_share_bytes_are_found_in_any_order_of_rows(order: tuple[int, ...]) -> None:
    spec = TensorSpec("int8", (8,))
    places = [("f", 0), ("f", 8), ("g", 0), ("g", 8)]
    apart = [Row(str(number), spec, *places[number], 0) for number in order]
    shared = [row._replace(offset=1) if row.name == "1" else row for row in apart]

    TreeFile({}, apart).check(["f", "g"], where="x")
    with pytest.raises(CorruptCheckpointError, match="'x' gives the tensor '1' bytes that it cannot have"):
        TreeFile({}, shared).check(["f", "g"], where="x")


def test_fields_of_a_later_version_are_ignored() -> None:
    fields = json.loads(TREE.encode())

    assert TreeFile.decode(json.dumps({**fields, "later": 1}).encode(), where="x") == TREE


def test_tree_of_a_newer_format_is_refused_by_number() -> None:
    with pytest.raises(FormatVersionError, match="'x' is of format version 2") as caught:
        TreeFile.decode(b'{"format_version": 2}', where="x")
    assert caught.value.found == 2


BLOCK = {"file": "f", "names": ["a"], "kinds": [0], "offsets": [0], "crc32c": [5]}
KIND = ["float32", [2], 8]


def refused(block: object, kind: object = KIND, **changes: object) -> None:
    fields = {"format_version": 1, "aliases": {}, "metadata": {}, "skeleton": {}, "kinds": [kind], "tensors": [block], **changes}
    TreeFile.decode(json.dumps(fields).encode(), where="x")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("a", "not an object"),
        ({key: value for key, value in BLOCK.items() if key != "crc32c"}, "no 'crc32c'"),
        (BLOCK | {"file": 1}, "as 'file'"),
        (BLOCK | {"names": "a"}, "as 'names'"),
        (BLOCK | {"names": [1]}, "an? int among"),
        (BLOCK | {"names": ["a", "b"]}, "a block of 2 tensors with columns of other lengths"),
        (BLOCK | {"kinds": [0, 0]}, "columns of other lengths"),
        (BLOCK | {"kinds": [1]}, "kinds of tensors out of range"),
        (BLOCK | {"kinds": [-1]}, "kinds of tensors out of range"),
        (BLOCK | {"kinds": [True]}, "a bool among"),
        (BLOCK | {"offsets": [-1]}, "offsets of tensors out of range"),
        (BLOCK | {"offsets": [2**63]}, "offsets of tensors out of range"),
        (BLOCK | {"offsets": ["0"]}, "a str among"),
        (BLOCK | {"crc32c": [2**32]}, "checksums of tensors out of range"),
        (BLOCK | {"crc32c": [1.0]}, "a float among"),
        (BLOCK | {"starts": [[0]], "stops": [[3]]}, r"from \(0,\) to \(3,\), outside of \(2,\)"),
        (BLOCK | {"starts": [[1]], "stops": [[0]]}, "start <= stop"),
        (BLOCK | {"starts": [[0, 0]], "stops": [[1, 1]]}, "outside"),
        (BLOCK | {"starts": [0], "stops": [1]}, "an? int among"),
        (BLOCK | {"starts": [None], "stops": [None]}, "a NoneType among"),
        (BLOCK | {"starts": [[True]], "stops": [[2]]}, "a bool among"),
        (BLOCK | {"starts": [[0], [0]], "stops": [[1]]}, "2 starts and 1 stops"),
        (BLOCK | {"starts": [], "stops": []}, "columns of other lengths"),
        (BLOCK | {"starts": [[0]]}, "no 'stops'"),
    ],
)
def test_block_that_cannot_be_is_refused(block: object, message: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=message):
        refused(block)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("a", "'a' as a kind"),
        (["float32", [2]], "as a kind"),
        ([1, [2], 8], "as a kind"),
        (["float33", [2], 8], "'float33' is not known"),
        (["f4", [2], 8], "of dtype 'f4'"),
        (["object", [0], 0], "not known"),
        (["float32", "2", 8], "as a kind"),
        (["float32", [2.0], 8], "a float among"),
        (["float32", [[2]], 8], "a list among"),
        (["float32", [True], 4], "a bool among"),
        (["float32", [-2], 8], "out of range"),
        (["float32", [2**40] * 65, 8], "rank 65"),
        (["float32", [2], 9], r"of dtype float32 and shape \[2\] 9 bytes, where these make 8"),
        (["float32", [2], 8.0], "8.0 bytes"),
        (["float32", [2**62, 2**62], 2**126], "which no array can have"),
    ],
)
def test_kind_that_cannot_be_is_refused(kind: object, message: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=message):
        refused(BLOCK, kind)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensors": [BLOCK, BLOCK]}, "a tensor twice"),
        (
            {
                "kinds": [["int8", [2], 2], ["uint8", [2], 2]],
                "tensors": [
                    BLOCK | {"starts": [[0]], "stops": [[1]]},
                    BLOCK | {"kinds": [1], "offsets": [1], "starts": [[1]], "stops": [[2]]},
                ],
            },
            "differ in dtype",
        ),
        ({"aliases": {"b": "c"}}, "alias 'b' of 'c'"),
        ({"aliases": {"a": "a"}}, "alias 'a' of 'a'"),
        ({"aliases": {"b": []}}, "alias 'b'"),
        ({"aliases": []}, "as 'aliases'"),
        ({"tensors": {}}, "as 'tensors'"),
        ({"kinds": {}}, "as 'kinds'"),
        ({"metadata": None}, "as 'metadata'"),
    ],
)
def test_tree_that_contradicts_itself_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=message):
        refused(BLOCK, **changes)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'{"format_version": NaN}', b"[" * 10**6, b"9" * 10**6, b"\xff", b"{}"])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptCheckpointError, match="'tree'"):
        TreeFile.decode(data, where="'tree'".strip("'"))


@given(st.data())
def test_no_mutation_raises_anything_but_our_errors(data: st.DataObject) -> None:
    text = bytearray(TREE.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at, end = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 4))
        text[at : at + end] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"1e9", b"[", b"-", b"99999999999999999999", b"null"])
        )

    only_our_errors(bytes(text))


@given(st.data())
def test_no_mutated_value_raises_anything_but_our_errors(data: st.DataObject) -> None:
    fields: Any = json.loads(TREE.encode())
    block = data.draw(st.sampled_from(fields["tensors"]))
    column = data.draw(st.sampled_from([block, *(each for each in block.values() if isinstance(each, list)), *fields["kinds"]]))
    column[data.draw(st.sampled_from(list(column) if isinstance(column, dict) else range(len(column))))] = data.draw(
        json_values
        | st.sampled_from([*DTYPES, "str", "void", "bytes", "int", "object", "bytes0", "float32,float32", "packed_float4_e2m1fn"])
    )

    only_our_errors(json.dumps(fields).encode())


def only_our_errors(data: bytes) -> None:
    try:
        tree = TreeFile.decode(data, where="x")
    except (CorruptCheckpointError, FormatVersionError):
        return
    assert all(isinstance(row, Row) for row in tree.rows)


def test_hostile_sizes_allocate_nothing() -> None:
    kind = ["float32", [2**31, 2**30], 2**63]
    data = json.dumps({"format_version": 1, "aliases": {}, "metadata": {}, "kinds": [kind], "tensors": [BLOCK]}).encode()

    tracemalloc.start()
    with pytest.raises(CorruptCheckpointError):
        TreeFile.decode(data, where="x")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1 << 20


def test_twenty_thousand_tensors_cost_little() -> None:
    spec = TensorSpec("bfloat16", (1024, 8))
    rows = [
        Row(f"model/blocks/{n}/weight", spec, "model.safetensors", n * 16384, random.Random(n).getrandbits(32))
        for n in range(20_000)
    ]
    tree = TreeFile({}, rows)

    data, encode_s = timed(tree.encode)
    again, decode_s = timed(lambda: TreeFile.decode(data, where="x"))
    _, loads_s = timed(lambda: json.loads(data))

    assert again == tree
    # The budget is a few times what the parser alone takes; a row as an object of its own would be five times over it.
    assert encode_s < 8 * loads_s
    assert decode_s < 8 * loads_s


def timed(call: Any) -> tuple[Any, float]:
    best_s = math.inf
    for _ in range(3):
        begun = time.perf_counter()
        result = call()
        best_s = min(best_s, time.perf_counter() - begun)
    return result, best_s


def test_one_tensor_is_found_without_the_others() -> None:
    text = TreeText(TREE.encode(), ["model.safetensors", "more.safetensors"], where="x")

    with mock.patch.object(TreeText, "tree", None):
        found = {name: text.only(name) for name in ("w", "b", "tied", "b,", "", "x\ny")}

    rows = {name: None if tree is None else list(tree.rows) for name, tree in found.items()}
    assert rows == {"w": [TREE.rows[0]], "b": [*TREE.rows[1:3]], "tied": None, "b,": None, "": None, "x\ny": None}


def test_all_rows_are_decoded_when_many_are_asked_for() -> None:
    text = TreeText(TREE.encode(), ["model.safetensors", "more.safetensors"], where="x")

    found = [text.only("w") is None for _ in range(100)]

    assert found == [False] * 16 + [True] * 84
    assert text.tree == TREE


@pytest.mark.parametrize("name", ["w", "b"])
def test_a_tensor_found_alone_is_checked_as_all_are(name: str) -> None:
    twice = TREE.encode().replace(b'"names":["s"]', b'"names":["%s"]' % name.encode())
    elsewhere = TreeText(TREE.encode(), ["model.safetensors"], where="x")

    with pytest.raises(CorruptCheckpointError, match="a tensor twice" if name == "w" else "'b' that differ"):
        TreeText(twice, ["model.safetensors", "more.safetensors"], where="x").only(name)
    with nullcontext() if name == "w" else pytest.raises(CorruptCheckpointError, match=r"'more.safetensors'.* manifest"):
        elsewhere.only(name)


def test_the_error_of_a_tree_tells_the_step_whenever_it_is_decoded() -> None:
    text = TreeText(TREE.encode().replace(b"[64]", b"[-64]"), ["model.safetensors", "more.safetensors"], where="x", step=7)

    for use in (lambda: text.only("b"), lambda: text.tree):
        with pytest.raises(CorruptCheckpointError, match="out of range") as caught:
            use()
        assert caught.value.step == 7


def test_a_tree_in_other_lines_is_decoded_at_once() -> None:
    data = json.dumps(json.loads(TREE.encode())).encode()

    text = TreeText(data, ["model.safetensors", "more.safetensors"], where="x")

    assert text.only("w") is None
    assert text.tree == TREE
    with pytest.raises(FormatVersionError):
        TreeText(b'{"format_version": 2}', [], where="x")


def test_one_tensor_is_found_without_decoding_the_kinds_of_others() -> None:
    rows = [Row(f"t{n}", TensorSpec("int8", (n,)), "f", n * n, n) for n in range(1, 40)]
    data = TreeFile({}, rows).encode()
    others = data.replace(b'["int8",[5],5]', b'["int8",[5],nonsense]')

    found = TreeText(others, ["f"], where="x").only("t7")

    assert found is not None
    assert list(found.rows) == [rows[6]]
    with pytest.raises(CorruptCheckpointError, match="is not JSON"):
        TreeText(others, ["f"], where="x").only("t5")


@pytest.mark.parametrize("number", [b"99", b"-1", b"true", b"null", b"[0]", b"1.0"])
def test_one_tensor_of_a_kind_that_is_not_there_is_refused(number: bytes) -> None:
    data = TREE.encode().replace(b'"kinds":[0]', b'"kinds":[%s]' % number)

    with pytest.raises(CorruptCheckpointError, match=r"kinds of tensors out of range|among its tensors where a int belongs"):
        TreeText(data, ["model.safetensors", "more.safetensors"], where="x").only("w")


def test_one_tensor_is_found_where_the_kinds_stand_on_one_line() -> None:
    data = TREE.encode()
    head, tail = data[: data.index(b"[\n[")], data[data.index(b"\n],\n") + 1 :]
    kinds = json.dumps(json.loads(data)["kinds"], separators=(",", ":")).encode()

    found = TreeText(head + kinds + tail[1:], ["model.safetensors", "more.safetensors"], where="x").only("w")

    assert found is not None
    assert list(found.rows) == [TREE.rows[0]]
