"""Files that lie: each is refused by name, at once, and without taking memory."""

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bounds
import pytest

from ckptmgr.backend import Folder
from ckptmgr.errors import CorruptCheckpointError, UnsafeCheckpointError
from ckptmgr.storage import Head, PosixStore
from ckptmgr_safetensors import SafetensorsBackend

backend = SafetensorsBackend()
ONE = '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'


def entry(dtype: str = "U8", shape: str = "[1]", offsets: str = "[0,1]", more: str = "") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}{more}}}'


def file(header: str | bytes, data: bytes = b"x") -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(PosixStore(tmp_path))


cheap = functools.partial(bounds.cheap, nbytes=8 << 20)
BAD_FILES = {
    "nothing": (b"", "too few"),
    "no header": (b"\x08\x00", "too few"),
    "a length bomb": ((2**63).to_bytes(8, "little") + b"{}", "over the limit"),
    "a length over the limit": ((100_000_001).to_bytes(8, "little") + b"{}", "over the limit"),
    "a length past the end": ((99_999_999).to_bytes(8, "little") + b"{}", "the file at 10"),
    "a length one past the end": (file("{}", b"")[:-1], "its header ends at byte 10, the file at 9"),
    "no JSON": (file("not JSON"), "no valid JSON"),
    "no text": (file(b'{"\xff":1}'), "no valid JSON"),
    "a byte order mark": (file("\ufeff{}", b""), "no valid JSON"),
    "NUL padding": (file("{}\x00\x00", b""), "no valid JSON"),
    "NaN": (file('{"a":NaN}'), "NaN is not JSON"),
    "a lone surrogate": (file('{"\\ud800":' + entry() + "}"), "surrogates not allowed"),
    "half an escaped pair": (file('{"\\udc00\\ud800":' + entry() + "}"), "surrogates not allowed"),
    "no object": (file("[]", b""), "no JSON object"),
    "deep lists": (file("[" * 100_000), "lists and objects"),
    "deep objects": (file('{"a":' * 100_000), "nest 100000 deep"),
    "depth behind strings": (file('{"]]\\"]]":' + "[" * 200), "nest 201 deep"),
    "a huge integer": (file('{"a":' + entry(shape="[" + "9" * 1_000_000 + "]") + "}"), "out of range"),
    "a number out of range": (file('{"a":' + entry(more=',"x":1e999') + "}"), "out of range"),
    "a name twice": (file(f"{{{ONE},{ONE}}}"), "'a' is there twice"),
    "a name twice in other words": (file(f'{{{ONE},"\\u0061":{entry()}}}'), "'a' is there twice"),
    "a field twice": (file('{"a":' + entry(more=',"dtype":"U8"') + "}"), "'dtype' is there twice"),
    "metadata twice": (file('{"__metadata__":{},"__metadata__":{}}', b""), "'__metadata__' is there twice"),
    "a metadata key twice": (file('{"__metadata__":{"k":"1","k":"2"}}', b""), "'k' is there twice"),
    "metadata of numbers": (file('{"__metadata__":{"k":1}}', b""), "strings to strings"),
    "metadata that is a list": (file('{"__metadata__":[]}', b""), "strings to strings"),
    "trailing bytes": (file(f"{{{ONE}}}", b"xyz"), "its tensors end at byte"),
    "missing bytes": (file(f"{{{ONE}}}", b""), "its tensors end at byte"),
    "bytes without tensors": (file("{}", b"x"), "its tensors end at byte"),
    "a skeleton that is none": (file('{"__metadata__":{"ckptmgr":"{"}}', b""), "'ckptmgr' is no valid JSON"),
    "a deep skeleton": (file(json.dumps({"__metadata__": {"ckptmgr": "[" * 100_000}}), b""), "'ckptmgr' is no valid JSON"),
    "aliases that are none": (file('{"__metadata__":{"ckptmgr.aliases":"[1]"}}', b""), "'ckptmgr.aliases'"),
    "names that are numbers": (file('{"__metadata__":{"ckptmgr.names":"{\\"a\\":1}"}}', b""), "'ckptmgr.names'"),
    "a list of keys that are not there": (file('{"__metadata__":{"ckptmgr.json":"[\\"k\\"]"}}', b""), "'?ckptmgr.json"),
    "unhashable keys": (file('{"__metadata__":{"ckptmgr.json":"[{}]"}}', b""), "'?ckptmgr.json"),
    "one name for two": (
        file(
            json.dumps({"__metadata__": {"ckptmgr": "{}", "ckptmgr.names": '{"a":"b"}'}})[:-1]
            + f',{ONE},"b":{entry(shape="[0]", offsets="[1,1]")}}}'
        ),
        "one name to two",
    ),
}

BAD_TENSORS = {
    "a number": ("1", "needs dtype"),
    "a list": ('["U8",[1],[0,1]]', "needs dtype"),
    "no offsets": ('{"dtype":"U8","shape":[1]}', "needs dtype"),
    "an unknown dtype": (entry("F128"), "'F128' is not known"),
    "a dtype in small letters": (entry("u8"), "'u8' is not known"),
    "a dtype that is no string": ('{"dtype":7,"shape":[1],"data_offsets":[0,1]}', "dtype code"),
    "a shape that is a string": (entry(shape='"1"'), "list of dimensions"),
    "three offsets": (entry(offsets="[0,1,1]"), "two data_offsets"),
    "a float": (entry(shape="[1.0]"), "integers"),
    "an exponent": (entry(shape="[1e0]"), "integers"),
    "true": (entry(shape="[true]"), "integers"),
    "true as an offset": (entry(offsets="[0,true]"), "integers"),
    "a string": (entry(shape='["1"]'), "integers"),
    "a list as a dimension": (entry(shape="[[1]]"), "integers"),
    "minus one": (entry(shape="[-1]"), "integers"),
    "minus zero": (entry(offsets="[-0,1]"), "integers"),
    "an offset over 64 bits": (entry(offsets="[0,18446744073709551617]"), "takes 1 bytes"),
    "a dimension over 64 bits": (entry(shape="[0,18446744073709551616]", offsets="[0,0]"), "no array"),
    "a product over 64 bits": (entry("F64", "[4611686018427387904,4611686018427387904]"), "no array"),
    "an overflow to nothing": (entry(shape="[4611686018427387904,4611686018427387904,0]", offsets="[0,0]"), "no array"),
    "an overflow behind nothing": (entry(shape="[0,4611686018427387904,4611686018427387904]", offsets="[0,0]"), "no array"),
    "too many dimensions": (entry(shape=str([1] * 65)), "no array"),
    "half a byte": (entry("F4", "[3]"), "whole bytes"),
    "too many bytes": (entry(shape="[2]"), "takes 2 bytes, not 1"),
    "too few bytes": (entry(shape="[0]"), "takes 0 bytes, not 1"),
    "an end before its begin": (entry(offsets="[0,-1]"), "integers"),
    "a begin past its end": (entry(offsets="[1,0]"), "hole"),
    "a hole before it": (entry(offsets="[1,2]"), "leaves a hole"),
    "another tensor's bytes": (entry() + f',"b":{entry()}', "overlaps"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_file_is_refused(folder: Folder, what: str) -> None:
    data, problem = BAD_FILES[what]
    folder.write("bad.safetensors", data)

    with cheap(), pytest.raises(CorruptCheckpointError, match=problem) as error:
        backend.open(folder, "bad.safetensors")

    assert error.value.file == "bad.safetensors"
    assert "bad.safetensors" in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("what", BAD_TENSORS)
def test_a_bad_tensor_is_refused_by_name(folder: Folder, what: str) -> None:
    text, problem = BAD_TENSORS[what]
    folder.write("bad.safetensors", file(f'{{"w":{text}}}'))

    with cheap(), pytest.raises(CorruptCheckpointError, match=problem) as error:
        backend.open(folder, "bad.safetensors")

    assert error.value.file == "bad.safetensors"
    assert error.value.tensor in ("w", "b")


def test_a_huge_integer_is_refused_even_where_python_would_take_it(folder: Folder) -> None:
    folder.write("bad.safetensors", file(json.dumps({"__metadata__": {"ckptmgr": "9" * 1_000_000}}), b""))
    limit = sys.get_int_max_str_digits()

    sys.set_int_max_str_digits(0)
    try:
        with cheap(), pytest.raises(CorruptCheckpointError, match="1000000 digits"):
            backend.open(folder, "bad.safetensors")
    finally:
        sys.set_int_max_str_digits(limit)


@pytest.mark.parametrize("empty", ["[],", "{},"])
def test_a_header_full_of_empty_values_is_refused_before_it_is_built(folder: Folder, empty: str) -> None:
    filler = (empty * 1_000_000)[:-1]
    folder.write("bad.safetensors", file(f'{{"w":{entry(more=f""","x":[{filler}]""")}}}'))

    with cheap(nbytes=32 << 20), pytest.raises(CorruptCheckpointError, match="lists and objects"):
        backend.open(folder, "bad.safetensors")


def test_what_only_looks_deep_or_odd_is_accepted(folder: Folder) -> None:
    name = "[" * 1000 + '\\"' + "{" * 1000 + "\\\\"
    first, second = entry(more=',"extra":[-1,0.5,{"x":null}]'), entry(shape="[0]", offsets="[1,1]")
    header = f' \n{{"__metadata__":null,"{name}":{first},"\\ud83d\\ude00":{second}}}\n\t'
    folder.write("odd.safetensors", file(header))

    assert list(backend.open(folder, "odd.safetensors").specs) == ["[" * 1000 + '"' + "{" * 1000 + "\\", "\U0001f600"]


INDEX = "model.safetensors.index.json"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def sharded(folder: Folder) -> Folder:
    for number in (1, 2):
        folder.write(f"model-0000{number}-of-00002.safetensors", file(ONE.replace("a", "ab"[number - 1], 1).join("{}")))
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    folder.write(INDEX, json.dumps({"metadata": {"total_size": 10**30}, "weight_map": names}).encode())
    assert list(backend.open(folder, "").specs) == ["a", "b"]
    return folder


def rewrite_index(folder: Folder, change: Change) -> None:
    path = Path(folder.location(INDEX))
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "sub\\x", "C:x", "..", ".", "", "s3://b/x", "x\x00", "x" * 300],
)
def test_a_shard_name_that_leads_elsewhere_is_unsafe(sharded: Folder, name: str) -> None:
    rewrite_index(sharded, lambda index: index["weight_map"].update(b=name))

    with pytest.raises(UnsafeCheckpointError, match="'b'") as error:
        backend.open(sharded, "")

    assert error.value.file == INDEX


BAD_INDEXES: dict[str, tuple[Change, str]] = {
    "a list as map": (lambda index: index.update(weight_map=[]), "no weight_map"),
    "no map": (lambda index: index.pop("weight_map"), "no weight_map"),
    "metadata that is a string": (lambda index: index.update(metadata="x"), "metadata"),
    "a number as file": (lambda index: index["weight_map"].update(b=1), "tensor 'b'"),
    "a file that is not there": (lambda index: index["weight_map"].update(b="none.safetensors"), "no such file"),
    "itself as file": (lambda index: index["weight_map"].update(b=INDEX), "over the limit"),
    "a tensor that is not there": (lambda index: index["weight_map"].update(c=index["weight_map"]["a"]), "in none of"),
    "a tensor in the other file": (lambda index: index["weight_map"].update(b=index["weight_map"]["a"]), "'b': it should be in"),
    "tensors in each other's file": (
        lambda index: index["weight_map"].update(a=index["weight_map"]["b"], b=index["weight_map"]["a"]),
        "'a': it should be in 'model-00002",
    ),
    "aliases that are none": (lambda index: index["metadata"].update({"ckptmgr.aliases": 7}), "ckptmgr.aliases"),
}


@pytest.mark.parametrize("what", BAD_INDEXES)
def test_a_bad_index_is_refused(sharded: Folder, what: str) -> None:
    change, problem = BAD_INDEXES[what]
    rewrite_index(sharded, change)

    with pytest.raises(CorruptCheckpointError, match=problem):
        backend.open(sharded, "")


@pytest.mark.parametrize(
    "data",
    [b"", b"[", b"[]", b'{"weight_map":{"a":"x","a":"x"}}', b'{"a":' * 100_000, b"\xff", b'{"weight_map":' + b"9" * 10**6 + b"}"],
)
def test_an_index_that_is_no_proper_json_is_refused(sharded: Folder, data: bytes) -> None:
    sharded.write(INDEX, data)

    with cheap(), pytest.raises(CorruptCheckpointError):
        backend.open(sharded, "")


def test_an_index_over_the_limit_is_not_read(sharded: Folder) -> None:
    with open(sharded.location(INDEX), "r+b") as hole:
        hole.truncate(100_000_001)

    with cheap(), pytest.raises(CorruptCheckpointError, match="over the limit"):
        backend.open(sharded, "")


def test_a_tensor_in_two_files_is_refused(sharded: Folder) -> None:
    sharded.write("model-00002-of-00002.safetensors", file(f'{{{ONE},"b":{entry(offsets="[1,2]")}}}', b"xy"))

    with pytest.raises(CorruptCheckpointError, match="two files") as error:
        backend.open(sharded, "")

    assert error.value.tensor == "a"


def test_a_damaged_shard_is_named(sharded: Folder) -> None:
    sharded.write("model-00002-of-00002.safetensors", b"short")

    with pytest.raises(CorruptCheckpointError) as error:
        backend.open(sharded, "")

    assert error.value.file == "model-00002-of-00002.safetensors"


def test_a_file_that_ends_before_its_announced_size_is_damaged(tmp_path: Path) -> None:
    class Shrinking(PosixStore):
        def head(self, key: str) -> Head | None:
            head = super().head(key)
            return head and head._replace(nbytes=head.nbytes + 1)

    folder = Folder(Shrinking(tmp_path))
    folder.write("x.safetensors", file(f"{{{ONE}}}"))

    with pytest.raises(CorruptCheckpointError, match="ends before"):
        backend.open(folder, "x.safetensors")


def test_a_link_is_not_followed(sharded: Folder, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.safetensors"
    secret.write_bytes((tmp_path / "model-00002-of-00002.safetensors").read_bytes())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    os.symlink(secret, tmp_path / "model-00002-of-00002.safetensors")

    with pytest.raises(CorruptCheckpointError, match="links do not count"):
        backend.open(sharded, "")
