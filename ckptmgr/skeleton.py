"""The skeleton of a state: plain JSON, with marked objects for what JSON has not.

A marked object has exactly one key that starts with ``$``. What JSON holds exactly stays as it is: dicts of str keys, lists,
None, bools, ints below 2**53, finite floats, text. ``docs/format.md`` lists the marks. Skeletons come from files: whatever
`decode` does not know is damage, and nothing in one is ever imported or executed.
"""

import base64
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ckptmgr.errors import CorruptCheckpointError, UnsupportedTensorError
from ckptmgr.rng import RngState, check
from ckptmgr.spec import STRING, dtype_name, numpy_dtype
from ckptmgr.step import JSON

Path: TypeAlias = tuple[str | int, ...]

MAX_DEPTH = 64  # of a state
_PATH_DEPTH = MAX_DEPTH + 8  # with the state of a generator below
_JSON_DEPTH = 3 * MAX_DEPTH + 8  # an object whose state is a tuple takes three levels of JSON
_TENSOR = frozenset({"$tensor", "kind", "text"})
_MOST_ABOVE = 256  # characters of a path above $arrays: a few keys in a file must not become names of any length
_MAKE: Callable[..., Any] = tuple.__new__
_EXACT = 1 << 53  # ints below this are exact in every JSON reader
_KEYS = 1 << 63  # keys of dicts are smaller


class TensorNode(NamedTuple):
    """The place of a tensor: its name, the kind of leaf it was (see `arrays.kind`), the kind of string array."""

    name: str
    kind: str = "numpy"
    text: str | None = None


class Fields(dict[str, Any]):
    """A decoded namedtuple, with the names of its fields."""


class Arrays(dict[str, str]):
    """A dict of nothing but numpy arrays in an `Outline`: by key the name of each."""


class Outline(NamedTuple):
    """A decoded skeleton with few objects, as there may be many tensors: `spelled` makes a `TensorNode` for each.

    ``tree`` has `TensorNode`, `Arrays` and `RngState` in it. ``names`` are those of all tensors, in order.
    """

    tree: Any
    names: list[str]


def whole(node: JSON) -> JSON:
    """The skeleton of a whole state from that of its value: never null, which stands for having none, as foreign files do."""
    return {"$object": "NoneType", "state": None} if node is None else node


def mapping(items: Iterable[tuple[Any, JSON]]) -> JSON:
    """The JSON of a dict whose keys are str and int and whose values are JSON already."""
    made = dict(items)
    if {str}.issuperset(map(type, made)) and ("$" not in "".join(made) or not [key for key in made if key[:1] == "$"]):
        return made
    return {"$dict": [[scalar(key), value] for key, value in made.items()]}


def arrays(keys: Sequence[Any], path: Path) -> dict[str, JSON] | None:
    """The JSON of a dict at ``path`` of numpy arrays whose names are their own paths; None if it has another form."""
    if set(map(type, keys)) != {str} or "$" in "".join(keys) or len(_start(path)) > _MOST_ABOVE:
        return None
    return {"$arrays": [*keys]}


def scalar(value: Any) -> JSON:
    """The JSON of one plain value, exact to the bit.

    Raises:
        TypeError: it is none.
    """
    kind = type(value)
    if kind in PLAIN:
        return PLAIN[kind](value)
    if isinstance(value, np.generic):
        return _numpy_scalar(value)
    raise TypeError(f"a {kind.__qualname__} is no plain value")


def is_scalar(value: Any) -> bool:
    """Whether `scalar` takes it: exactly one of Python's plain types, or a numpy scalar."""
    return type(value) in PLAIN or isinstance(value, np.generic)


def plain(value: Any) -> JSON:
    """The JSON of a small value of dicts, lists, plain values and numpy arrays (the state of a generator)."""
    if isinstance(value, dict):
        return mapping((key, plain(item)) for key, item in value.items())
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        raw = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes()
        return {"$array": dtype_name(value.dtype), "shape": list(value.shape), "data": _base64(raw)}
    return scalar(value)


def decode(
    skeleton: JSON,
    leaf: Callable[[Path, TensorNode | RngState], Any],
    namedtuple: Callable[[dict[str, Any]], Any] = Fields,
) -> Any:
    """The state of this skeleton: dicts, lists, tuples and plain values.

    ``leaf`` makes what stands for a tensor or a generator, ``namedtuple`` what stands for one. Dataclasses and
    objects with a `state_dict` become dicts (or whatever their state was).

    Raises:
        CorruptCheckpointError: it is no skeleton; names the place.
    """
    return _Decoder(leaf, namedtuple).value(skeleton, ())


def outline(skeleton: JSON) -> Outline:
    """The skeleton decoded, with no more objects than needed. Raises like `decode`."""
    decoder = _Outliner(lambda _, found: found, Fields)
    return Outline(decoder.value(skeleton, ()), list(decoder.names))


def spelled(tree: Any) -> Any:
    """An outline's tree with a `TensorNode` for each tensor, as `decode` gives it when leaves stand for themselves."""
    kind = type(tree)
    if kind is Arrays:
        # By `tuple`, because a call of a NamedTuple's own `__new__` takes three times as long.
        nodes = map(_MAKE, repeat(TensorNode), zip(tree.values(), repeat("numpy"), repeat(None)))
        return dict(zip(tree, nodes, strict=True))
    if kind is dict or kind is Fields:
        return kind(zip(tree, map(spelled, tree.values()), strict=True))
    return kind(map(spelled, tree)) if kind is list or kind is tuple else tree


class _Decoder:
    def __init__(
        self,
        leaf: Callable[[Path, TensorNode | RngState], Any],
        namedtuple: Callable[[dict[str, Any]], Any],
        depth: int = 0,
    ) -> None:
        self.leaf = leaf
        self.namedtuple = namedtuple
        self.depth = depth
        self.names: dict[str, Any] = {}  # in order; only the keys tell

    def value(self, node: JSON, path: Path) -> Any:
        kind = type(node)
        if kind is dict and "$tensor" in node and node.keys() <= _TENSOR:  # a short way, because there may be many
            return self.tensor(node, path)
        if kind is dict and "$arrays" in node and len(node) == 1:
            return self.arrays(node["$arrays"], path)
        if kind is not dict and kind is not list:
            _check(node is None or kind in (bool, int, float, str), path, f"holds a {kind.__name__}")
            return node
        _check(len(path) <= _PATH_DEPTH and self.depth < _JSON_DEPTH, path, "is nested too deeply")
        self.depth += 1
        made = self.object(node, path) if kind is dict else [self.value(item, (*path, i)) for i, item in enumerate(node)]
        self.depth -= 1
        return made

    def object(self, node: dict[str, JSON], path: Path) -> Any:
        marks = [key for key in node if key[:1] == "$"]
        if not marks:
            return {key: self.value(item, (*path, key)) for key, item in node.items()}
        decoder = _MARKS.get(marks[0])
        if decoder is None or len(marks) > 1:
            raise _damaged(path, f"has the unknown mark {marks[0]!r} (written by a newer ckptmgr?)")
        try:
            return decoder(self, node, path)
        except CorruptCheckpointError:
            raise
        except (LookupError, ValueError, TypeError, AttributeError, OverflowError, struct.error, UnsupportedTensorError) as error:
            raise _damaged(path, f"has a bad {marks[0]}: {type(error).__name__}: {error}") from error

    def arrays(self, keys: JSON, path: Path) -> Any:
        """A dict of nothing but numpy arrays."""
        return {key: self.leaf((*path, key), TensorNode(name)) for key, name in self.named(keys, path).items()}

    def named(self, keys: JSON, path: Path) -> Arrays:
        """By key the names of these arrays, which were not named before."""
        start = _start(path)
        if not isinstance(keys, list) or set(map(type, keys)) - {str} or len(start) > _MOST_ABOVE:
            raise _damaged(path, f"has a bad $arrays: no list of keys, or not at most {_MOST_ABOVE} characters below the top")
        names = [start + key for key in keys] if start else keys
        made = Arrays(zip(keys, names, strict=True))
        before = len(self.names)
        self.names |= dict.fromkeys(names) if start else made
        if len(made) < len(keys) or len(self.names) < before + len(keys):
            raise _damaged(path, "has a bad $arrays: it names a tensor a second time")
        return made

    def tensor(self, node: dict[str, JSON], path: Path) -> Any:
        name, kind, text = node["$tensor"], node.get("kind", "numpy"), node.get("text")
        if type(name) is not str or type(kind) is not str or (text is not None and type(text) is not str):
            raise _damaged(path, "has a bad $tensor: its fields are text")
        if name in self.names:
            raise _damaged(path, f"names the tensor {name!r} a second time")
        self.names[name] = None
        return self.leaf(path, TensorNode(name, kind, text))

    def rng(self, node: dict[str, JSON], path: Path) -> Any:
        saved = RngState(_text(node["$rng"]), _RngDecoder(self.leaf, self.namedtuple, self.depth).value(node["state"], path))
        check(saved)
        return self.leaf(path, saved)

    def items(self, node: JSON, path: Path) -> list[Any]:
        made: list[Any] = self.value(node, path) if isinstance(node, list) else _bad()
        return made

    def fields(self, node: dict[str, JSON], path: Path) -> dict[str, Any]:
        return {_text(key): self.value(item, (*path, key)) for key, item in node["fields"].items()}

    def pairs(self, node: JSON, path: Path) -> dict[str | int, Any]:
        made: dict[str | int, Any] = {}
        for code, item in node:
            key = code if isinstance(code, str | int) else self.value(code, path)
            _check(type(key) is str or (type(key) is int and -_KEYS <= key < _KEYS), path, "has a key that is no str or int")
            _check(key not in made, path, f"has the key {key!r} twice")
            made[key] = self.value(item, (*path, key))
        return made

    def array(self, node: dict[str, JSON], path: Path) -> Any:
        raise _damaged(path, "has an array out of place")


class _Outliner(_Decoder):
    def arrays(self, keys: JSON, path: Path) -> Arrays:
        return self.named(keys, path)


class _RngDecoder(_Decoder):
    """Of the state of a generator: small arrays may stand in it."""

    def array(self, node: dict[str, JSON], path: Path) -> Any:
        dtype, shape, raw = _fixed_dtype(node["$array"]), node["shape"], _unbase64(node["data"])
        is_shape = isinstance(shape, list) and len(shape) < 9 and all(type(size) is int and size >= 0 for size in shape)
        _check(is_shape, path, "has a bad shape")
        _check(math.prod(shape) * dtype.itemsize == len(raw), path, "has an array of another size")
        return np.frombuffer(raw, dtype).reshape(shape).copy()


def _numpy_scalar(value: np.generic) -> JSON:
    if isinstance(value, np.str_):
        # Not `str(value)`, which leaves out NULs at the end.
        return {"$scalar": "str", "data": value.encode("utf-8", "surrogatepass").hex()}
    if isinstance(value, np.bytes_):
        return {"$scalar": "bytes", "data": bytes(value).hex()}
    if (name := dtype_name(value.dtype)) == STRING:
        raise TypeError(f"a {type(value).__qualname__} is no plain value")
    return {"$scalar": name, "data": value.astype(value.dtype.newbyteorder("<")).tobytes().hex()}


def _decode_numpy_scalar(node: dict[str, JSON]) -> Any:
    name, raw = node["$scalar"], bytes.fromhex(node["data"])
    if name == "str":
        return np.str_(raw.decode("utf-8", "surrogatepass"))
    if name == "bytes":
        return np.bytes_(raw)
    dtype = _fixed_dtype(name)
    if len(raw) != dtype.itemsize or (name == "bool" and raw[0] > 1):
        raise ValueError(f"{len(raw)} bytes for {name}")
    return np.frombuffer(raw, dtype)[0]


def _fixed_dtype(name: Any) -> np.dtype[Any]:
    dtype = numpy_dtype(_text(name))
    return _bad() if dtype.hasobject else dtype


def _int(value: int) -> JSON:
    return value if -_EXACT < value < _EXACT else {"$int": hex(value)}


def _float(value: float) -> JSON:
    return value if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}


def _str(value: str) -> JSON:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate: two of them in a row would not survive JSON
        return {"$str": _base64(value.encode("utf-8", "surrogatepass"))}
    return value


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _unbase64(text: JSON) -> bytes:
    return base64.b64decode(_text(text), validate=True)


def _decode_int(text: JSON) -> int:
    return int(_text(text), 16)  # of hex digits, to which Python's limit on digits does not apply


def _decode_float(node: JSON) -> float:
    if isinstance(node, dict):
        value: float = struct.unpack(">d", bytes.fromhex(node["$float"]))[0]
        return value
    return node if isinstance(node, float) else _bad()


def _decode_complex(real: JSON, imag: JSON) -> complex:
    return complex(_decode_float(real), _decode_float(imag))


def _start(path: Path) -> str:
    """What the names of tensors at this path begin with, unless they had to be escaped."""
    return "".join([f"{key}/" for key in path])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _bad()


def _bad() -> Any:
    raise ValueError("not of the right type")


def _check(is_good: bool, path: Path, what: str) -> None:
    if not is_good:
        raise _damaged(path, what)


def _damaged(path: Path, what: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(f"the stored state tree is damaged: {'/'.join(map(str, path))!r} {what}")


PLAIN: dict[type, Callable[[Any], JSON]] = {  # Python's plain types, and what makes JSON of their values
    type(None): lambda value: value,
    bool: lambda value: value,
    int: _int,
    float: _float,
    str: _str,
    complex: lambda value: {"$complex": [_float(value.real), _float(value.imag)]},
    bytes: lambda value: {"$bytes": _base64(value)},
}
_MARKS: dict[str, Callable[[Any, dict[str, JSON], Path], Any]] = {
    "$tensor": _Decoder.tensor,
    "$arrays": lambda it, node, path: it.arrays(node["$arrays"], path),
    "$rng": _Decoder.rng,
    "$tuple": lambda it, node, path: tuple(it.items(node["$tuple"], path)),
    "$namedtuple": lambda it, node, path: it.namedtuple(it.fields(node, path)),
    "$dataclass": _Decoder.fields,
    "$object": lambda it, node, path: it.value(node["state"], path),
    "$dict": lambda it, node, path: it.pairs(node["$dict"], path),
    "$int": lambda it, node, path: _decode_int(node["$int"]),
    "$float": lambda it, node, path: _decode_float(node),
    "$str": lambda it, node, path: _unbase64(node["$str"]).decode("utf-8", "surrogatepass"),
    "$bytes": lambda it, node, path: _unbase64(node["$bytes"]),
    "$complex": lambda it, node, path: _decode_complex(*node["$complex"]),
    "$scalar": lambda it, node, path: _decode_numpy_scalar(node),
    "$array": lambda it, node, path: it.array(node, path),
}
