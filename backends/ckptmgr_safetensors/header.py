"""One safetensors file's header: checked on reading, built for writing. Nothing here touches a tensor's bytes.

A header that `parse` returns is consistent with the file's size: its tensors cover the data exactly, without hole,
overlap or rest, so whoever reads by its offsets stays inside the file.

Source: the format notes of the safetensors repository, and its reference library 0.8.0.
"""

import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring as quoted
from operator import itemgetter
from typing import Any, NamedTuple

from ckptmgr.backend import JSON, FileOrigin, Part, TensorSpec, is_possible, numpy_dtype
from ckptmgr.errors import UnsupportedTensorError, shown
from ckptmgr_safetensors import strictjson

LENGTH_NBYTES = 8  # the header's own length, before it
MAX_HEADER_NBYTES = 100_000_000  # the reference library's limit
METADATA = "__metadata__"

DTYPES = {  # code in the file -> name of the dtype
    "BOOL": "bool",
    "F4": "packed_float4_e2m1fn",
    "F6_E2M3": "packed_float6_e2m3fn",
    "F6_E3M2": "packed_float6_e3m2fn",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
CODES = {name: code for code, name in DTYPES.items()}
_PACKED_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
BITS = {code: _PACKED_BITS.get(code) or numpy_dtype(name).itemsize * 8 for code, name in DTYPES.items()}

_SOME = 512  # entries that are made at once

# A tensor's entry has three lists and objects in some fifty bytes; Python takes twenty times the text of "[],[],[]".
_MIN_CONTAINERS = 4096


@dataclass(frozen=True, slots=True)
class Origin(FileOrigin):
    """A safetensors file, and its size."""

    nbytes: int
    form = "valid safetensors"
    subject = "tensor "


class Place(NamedTuple):
    """What a tensor is and at which byte of its file it starts."""

    spec: TensorSpec
    offset: int


class Header(NamedTuple):
    """A file's tensors in the order of their data, and its ``__metadata__``."""

    tensors: dict[str, Place]
    metadata: dict[str, str]


def length(first: bytes, origin: Origin) -> int:
    """The header's length, from a file's first 8 bytes; it is inside the file and its limit.

    Raises:
        CorruptCheckpointError: the file is too small for the header it claims.
    """
    if len(first) < LENGTH_NBYTES:
        raise origin.corrupt(f"{len(first)} bytes are too few for a header")
    nbytes = int.from_bytes(first[:LENGTH_NBYTES], "little")
    if nbytes > MAX_HEADER_NBYTES:
        raise origin.corrupt(f"it claims a header of {nbytes} bytes, over the limit of {MAX_HEADER_NBYTES}")
    if LENGTH_NBYTES + nbytes > origin.nbytes:
        raise origin.corrupt(f"its header ends at byte {LENGTH_NBYTES + nbytes}, the file at {origin.nbytes}")
    return nbytes


def parse(text: bytes, origin: Origin) -> Header:
    """The header whose JSON is ``text``, all of it checked.

    Raises:
        CorruptCheckpointError: it breaks a rule of the format, or does not fit the file's size; names the tensor.
    """
    try:
        root = strictjson.parse(text, containers=_MIN_CONTAINERS + len(text) // 8, parse_int=_unsigned)
    except ValueError as error:
        raise origin.corrupt(f"its header is no valid JSON: {error}") from error
    if not isinstance(root, dict):
        raise origin.corrupt("its header is no JSON object")
    metadata = _metadata(root.pop(METADATA, None), origin)
    return Header(_places(_entries(root, origin), LENGTH_NBYTES + len(text), origin), metadata)


def build(names: Sequence[str], specs: Sequence[TensorSpec], metadata: Mapping[str, str], align: int) -> bytes:
    """A file's bytes before its data, for tensors of these names and specs in the order of their data.

    Data starts at a multiple of ``align`` (and of 8): the header is padded with spaces, which every reader accepts.

    Raises:
        UnsupportedTensorError: the header is over the format's limit.
    """
    # Written piece by piece into one buffer: for many tensors, each copy of the text is fresh memory and a millisecond.
    stream = io.BytesIO()
    stream.write(bytes(LENGTH_NBYTES) + b"{")
    if metadata:
        stream.write(f"{quoted(METADATA)}:{_object(metadata)}{',' if names else ''}".encode())
    for text in _entries_of(names, specs):
        stream.write(text.encode())
    stream.write(b"}")
    stream.write(b" " * (-stream.tell() % math.lcm(align, 8)))
    nbytes = stream.tell() - LENGTH_NBYTES
    if nbytes > MAX_HEADER_NBYTES:
        raise UnsupportedTensorError(
            f"a header of {nbytes} bytes for {len(names)} tensors is over the format's limit of {MAX_HEADER_NBYTES}: "
            "write more and smaller files (max_file_nbytes), or shorter names and metadata"
        )
    stream.seek(0)
    stream.write(nbytes.to_bytes(LENGTH_NBYTES, "little"))
    return stream.getvalue()


def _entries_of(names: Sequence[str], specs: Sequence[TensorSpec]) -> Iterator[str]:
    """The JSON of the tensors' entries, some hundred at a time, in columns of texts that are joined."""
    # By identity: specs are interned, and hashing one costs more than the rest of its entry.
    kinds = {id(spec): spec for spec in specs}
    heads = {
        key: f'":{{"dtype":"{CODES[spec.dtype]}","shape":[{",".join(map(str, spec.shape))}],"data_offsets":['
        for key, spec in kinds.items()
    }
    begin = 0
    for at in range(0, len(names), _SOME):
        some, these = names[at : at + _SOME], specs[at : at + _SOME]
        if len(quoted("".join(some))) > len('""') + sum(map(len, some)):  # some have to be escaped
            some = [quoted(name)[1:-1] for name in some]
        ends = list(itertools.accumulate([spec.nbytes for spec in these], initial=begin))
        begin, numbers = ends[-1], list(map(str, ends))
        row = ['"', "", "", "", ",", "", "]},"]
        texts = row * len(some)
        texts[1::7], texts[2::7] = some, map(heads.__getitem__, map(id, these))
        texts[3::7], texts[5::7] = numbers[:-1], numbers[1:]
        if at + _SOME >= len(names):
            texts[-1] = "]}"
        yield "".join(texts)


def check_dtypes(parts: Sequence[Part]) -> None:
    """Refuses what the format has no code for; nothing is ever cast silently.

    Raises:
        UnsupportedTensorError: lists the tensors of the first such dtype.
    """
    if not CODES.keys() >= {part[1].dtype for part in parts}:  # by number, because there may be many
        refused = [part for part in parts if part.spec.dtype not in CODES]
        dtype = refused[0].spec.dtype
        names = [part.name for part in refused if part.spec.dtype == dtype]
        raise UnsupportedTensorError(
            f"safetensors has no dtype {dtype}, which these tensors have: {shown(names)}; cast them or use another backend",
            tensor=names[0],
        )


def _unsigned(text: str) -> int | float:
    # What is no u64 is a float to the reference, even "-0"; floats are refused wherever a number means something.
    return int(text) if len(text) <= 20 and text[0] != "-" else strictjson.finite(text)


def _metadata(value: JSON, origin: Origin) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise origin.corrupt(f"its {METADATA} is no mapping of strings to strings")
    return value


def _entries(root: Mapping[str, JSON], origin: Origin) -> list[tuple[int, int, str, TensorSpec]]:
    """``(begin, end, name, spec)`` of each tensor, in the header's order."""
    entries = []
    specs: dict[tuple[Any, ...], TensorSpec] = {}
    for name, fields in root.items():
        code, shape, begin, end = _fields(name, fields, origin)
        spec = specs.get((code, *shape))
        if spec is None:
            spec = specs[code, *shape] = _spec(name, code, tuple(shape), origin)
        entries.append((begin, end, name, spec))
    return entries


def _fields(name: str, fields: JSON, origin: Origin) -> tuple[str, list[int], int, int]:
    try:
        code, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    except (TypeError, KeyError) as error:
        raise origin.corrupt("its entry needs dtype, shape and data_offsets", name) from error
    if type(code) is not str or type(shape) is not list or type(offsets) is not list or len(offsets) != 2:
        raise origin.corrupt("its entry needs a dtype code, a list of dimensions and two data_offsets", name)
    # By exact type: True is an int to Python, and equal to 1.
    if not {int}.issuperset(map(type, shape)) or not {int}.issuperset(map(type, offsets)):
        raise origin.corrupt("its shape and data_offsets must be integers from 0 to 2^64-1", name)
    return code, shape, offsets[0], offsets[1]


def _spec(name: str, code: str, shape: tuple[int, ...], origin: Origin) -> TensorSpec:
    if code not in DTYPES:
        raise origin.corrupt(f"dtype {code!r} is not known", name)
    if not is_possible(shape, max(BITS[code] // 8, 1)):
        raise origin.corrupt(f"no array can have the shape {shown(shape)}", name)
    try:
        return TensorSpec(DTYPES[code], shape)
    except ValueError as error:
        raise origin.corrupt(str(error), name) from error


def _places(entries: list[tuple[int, int, str, TensorSpec]], start: int, origin: Origin) -> dict[str, Place]:
    """Where the tensors lie in the file, in data order; they must cover it from ``start`` to its end."""
    entries.sort(key=itemgetter(0, 1))
    places = {}
    covered = 0
    for begin, end, name, spec in entries:
        if begin != covered:
            problem = "leaves a hole in" if begin > covered else "overlaps other tensors in"
            raise origin.corrupt(f"starts at byte {begin} and {problem} the data, which is covered up to {covered}", name)
        if end - begin != spec.nbytes:
            raise origin.corrupt(f"{spec.dtype} of shape {spec.shape} takes {spec.nbytes} bytes, not {end - begin}", name)
        places[name] = Place(spec, start + begin)
        covered = end
    if start + covered != origin.nbytes:
        raise origin.corrupt(f"its tensors end at byte {start + covered}, the file at {origin.nbytes}")
    return places


def _object(values: Mapping[str, str]) -> str:
    return "{" + ",".join(f"{quoted(key)}:{quoted(values[key])}" for key in sorted(values)) + "}"
