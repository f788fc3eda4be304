"""Runs a pickle over inert values: a small machine of our own, which has no way to call what it does not know.

A global is a name that the caller's table knows, or it is refused; what is called, instantiated or given a state is one of
`values`. Memory is bounded by the pickle's own size, as `budget` counts it. Time is bounded also for a large one: only the
tensors beside it warrant more than some million values.

Source: the documentation of opcodes in CPython's pickletools; protocols 2 to 5.
"""

import struct
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeAlias

from ckptmgr.errors import CheckpointError
from ckptmgr_torch.budget import FREE_NBYTES, Budget, size
from ckptmgr_torch.origin import Damaged, Origin, Refused
from ckptmgr_torch.values import Allowed, Set, check_key, short

_FREE = 1 << 16  # places in the memo beside one for each few bytes
_MOST_MARKS = 1 << 14  # at once
MOST_VALUES = 1 << 23  # beside those of tensors: a list of numbers of that length takes seconds, and should be a tensor
_VALUES_OF_TENSOR = 128  # at most, in metadata of slices: about half of them
_MEMO_GAP = 256  # between the numbers of two values; picklers leave none
_MISSING: Any = object()
_MAX_LINE = 1024  # of a name
_MAX_INT_NBYTES = 1 << 16
_STOP = ord(".")
_SHOWN = 200

Op: TypeAlias = Callable[["Machine"], None]
_OPS: dict[int, Op] = {}
_NOT_READ = {  # that other picklers write: to objects by their classes' own code, or protocols 0 and 1
    **{ord("i"): "INST", ord("o"): "OBJ", 0x82: "EXT1", 0x83: "EXT2", 0x84: "EXT4", ord("P"): "PERSID"},
    **{0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER", ord("I"): "INT", ord("L"): "LONG", ord("F"): "FLOAT"},
    **{ord("S"): "STRING", ord("V"): "UNICODE", ord("g"): "GET", ord("p"): "PUT", ord("d"): "DICT", ord("l"): "LIST"},
}


class Machine:
    """One run over the bytes of a pickle.

    ``find`` gives what stands for a global, or raises Refused; ``persistent`` what stands for an object outside of the pickle.
    ``tensors`` is how many there can be at most, by what is stored of them; ``free`` as `Budget` has it.
    """

    def __init__(
        self,
        data: bytes,
        find: Callable[[str, str], object],
        persistent: Callable[[object], object],
        origin: Origin,
        *,
        tensors: int = 0,
        free: int = FREE_NBYTES,
    ) -> None:
        self.data, self.find, self.persistent, self.origin = data, find, persistent, origin
        self.at = 0
        self.stack: list[Any] = []
        self.frames: list[list[Any]] = []  # the stacks below each mark
        self.memo: list[Any] = []
        self.budget = Budget(len(data), tensors, free)
        self.steps = MOST_VALUES + _VALUES_OF_TENSOR * tensors

    def run(self, what: str) -> Any:
        """The value of the pickle, which is called ``what`` in errors.

        Raises:
            UnsafeCheckpointError: it names a global, or needs an opcode, that is not allowed.
            CorruptCheckpointError: it is damaged, or would take more than its size allows.
        """
        try:
            return self._run()
        except CheckpointError:
            raise
        except Refused as error:
            raise self.origin.unsafe(f"{what} has {error}", self.path()) from None
        except (Damaged, IndexError, struct.error) as error:
            text = str(error) if isinstance(error, Damaged) else "it takes what is not there"
            raise self.origin.corrupt(f"{what} is damaged at byte {self.at}: {text}", self.path()) from None

    def _run(self) -> Any:
        ops, data = _OPS, self.data
        for _ in range(self.steps):
            op = data[self.at]
            self.at += 1
            if op == _STOP:
                break
            if op not in ops:
                raise self._unknown(op)
            ops[op](self)
        else:
            raise Damaged(f"it takes more than {self.steps} steps: keep long lists of numbers as tensors")
        if len(self.stack) != 1 or self.frames:
            raise Damaged(f"it ends with {len(self.stack)} values")
        return self.stack[0]

    def path(self) -> str | None:
        """The keys that lead to what is being made, as far as the stack tells."""
        keys = _pending(self.frames[0] if self.frames else self.stack)
        for below, items in pairwise([*self.frames, self.stack]):
            if below and isinstance(below[-1], dict):
                at = (len(items) - 1) // 2 * 2
                keys += [key for index in range(at, -1, -2) if (key := _key(items[index]))][:1]
            elif below and type(below[-1]) is list:
                keys.append(str(len(below[-1]) + max(len(items) - 1, 0)))
            else:
                keys += _pending(items)
        return "/".join(keys)[:_SHOWN] or None

    def take(self, nbytes: int) -> bytes:
        """The next bytes."""
        if nbytes > len(self.data) - self.at:
            raise Damaged(f"it claims {nbytes} bytes where {len(self.data) - self.at} are left")
        self.at += nbytes
        return self.data[self.at - nbytes : self.at]

    def number(self, nbytes: int) -> int:
        """The next unsigned number."""
        return int.from_bytes(self.take(nbytes), "little")

    def line(self) -> str:
        """The next line of text."""
        end = self.data.find(b"\n", self.at, self.at + _MAX_LINE)
        if end < 0:
            raise Damaged("a name has no end")
        text = _text(self.data[self.at : end])
        self.at = end + 1
        return text

    def push(self, value: object) -> None:
        """One more value, which takes a place in the stack alone."""
        self.stack.append(value)

    def made(self, value: object) -> None:
        """One more value that takes memory."""
        self.budget.spend(size(value))
        self.stack.append(value)

    def marked(self) -> list[Any]:
        """The values above the last mark, which are taken off."""
        if not self.frames:
            raise Damaged("a mark is missing")
        items, self.stack = self.stack, self.frames.pop()
        return items

    def _unknown(self, op: int) -> Exception:
        if op in _NOT_READ:
            return Refused(f"the opcode {_NOT_READ[op]}, which is not read: save it again with torch.save's own protocol, 2")
        return Damaged(f"{op:#04x} is no opcode")


def _pending(items: list[Any]) -> list[str]:
    """The keys of dicts that get one item, which stands above its key, which stands above the dict."""
    return [key for below, item in pairwise(items) if isinstance(below, dict) and not below and (key := _key(item))]


def _key(value: object) -> str | None:
    return short(value).strip("'") if type(value) in (str, int) else None


def _op(*codes: bytes | int) -> Callable[[Op], Op]:
    def register(function: Op) -> Op:
        _OPS.update({code if isinstance(code, int) else code[0]: function for code in codes})
        return function

    return register


def _constant(code: bytes | int, value: object) -> None:
    _op(code)(lambda it: it.push(value))


def _sized(code: bytes | int, width: int, make: Callable[[bytes], object]) -> None:
    """An opcode with a length of ``width`` bytes, and that many bytes."""
    _op(code)(lambda it: it.made(make(it.take(it.number(width)))))


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise Damaged("a text is no UTF-8") from None


def _old_text(raw: bytes) -> str | bytes:
    """A str of Python 2."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _int(raw: bytes) -> int:
    if len(raw) > _MAX_INT_NBYTES:
        raise Damaged(f"a number has {len(raw)} bytes, and at most {_MAX_INT_NBYTES} are read")
    return int.from_bytes(raw, "little", signed=True)


_constant(b"N", None)
_constant(0x88, True)
_constant(0x89, False)
_constant(b")", ())
for _code, _width in ((b"K", 1), (b"M", 2)):
    _op(_code)(lambda it, width=_width: it.push(it.number(width)))  # type: ignore[misc]
_op(b"J")(lambda it: it.push(_int(it.take(4))))
_op(b"G")(lambda it: it.push(struct.unpack(">d", it.take(8))[0]))
for _code_, _width, _make in (
    (0x8A, 1, _int),
    (0x8B, 4, _int),
    (0x8C, 1, _text),
    (ord("X"), 4, _text),
    (0x8D, 8, _text),
    (ord("U"), 1, _old_text),
    (ord("T"), 4, _old_text),
    (ord("C"), 1, bytes),
    (ord("B"), 4, bytes),
    (0x8E, 8, bytes),
    (0x96, 8, bytes),
):
    _sized(_code_, _width, _make)
_op(b"]")(lambda it: it.made([]))
_op(b"}")(lambda it: it.made({}))
_op(0x8F)(lambda it: it.made(Set()))
_op(b"t")(lambda it: it.made(tuple(it.marked())))
_op(0x91)(lambda it: it.made(Set(it.marked())))
for _code_, _width in ((0x85, 1), (0x86, 2), (0x87, 3)):
    _op(_code_)(lambda it, width=_width: it.made(_last(it, width)))  # type: ignore[misc]
_op(b"2")(lambda it: it.push(it.stack[-1]))
_op(b"1")(lambda it: it.marked().clear())


def _last(it: Machine, count: int) -> tuple[Any, ...]:
    if len(it.stack) < count:
        raise Damaged("a tuple lacks its items")
    items = tuple(it.stack[-count:])
    del it.stack[-count:]
    return items


@_op(0x80)
def _protocol(it: Machine) -> None:
    if (version := it.number(1)) > 5:
        raise Damaged(f"protocol {version} is not known")


@_op(0x95)
def _frame(it: Machine) -> None:
    if (nbytes := it.number(8)) > len(it.data) - it.at:
        raise Damaged(f"a frame of {nbytes} bytes is cut off")


@_op(b"(")
def _mark(it: Machine) -> None:
    if len(it.frames) >= _MOST_MARKS:
        raise Damaged(f"it has more than {_MOST_MARKS} marks at once")
    it.frames.append(it.stack)
    it.stack = []


@_op(b"0")
def _pop(it: Machine) -> None:
    if it.stack:
        it.stack.pop()
    else:
        it.marked()


@_op(b"q", b"r", 0x94)
def _put(it: Machine) -> None:
    op = it.data[it.at - 1]
    index = len(it.memo) if op == 0x94 else it.number(1 if op == ord("q") else 4)
    if index > len(it.memo) + _MEMO_GAP or len(it.memo) > _FREE + len(it.data) // 3:  # what is worth a place takes more bytes
        raise Damaged("it keeps more values than a pickle of its size has")
    if index == len(it.memo):
        it.memo.append(it.stack[-1])
        return
    it.memo += [_MISSING] * (index + 1 - len(it.memo))
    it.memo[index] = it.stack[-1]


@_op(b"h", b"j")
def _get(it: Machine) -> None:
    index = it.number(1 if it.data[it.at - 1] == ord("h") else 4)
    if index >= len(it.memo) or it.memo[index] is _MISSING:
        raise Damaged(f"it has put nothing at {index}")
    it.push(it.memo[index])


@_op(b"a")
def _append(it: Machine) -> None:
    _extend(it, [it.stack.pop()], list)


@_op(b"e")
def _appends(it: Machine) -> None:
    _extend(it, it.marked(), list)


@_op(0x90)
def _add_items(it: Machine) -> None:
    _extend(it, it.marked(), Set)


def _extend(it: Machine, items: list[Any], kind: type) -> None:
    target = it.stack[-1]
    if type(target) is not kind:
        raise Damaged(f"items are given to {short(target)}")
    before = size(target)
    target.extend(items)  # type: ignore[attr-defined]
    it.budget.spend(size(target) - before)


@_op(b"s")
def _set_item(it: Machine) -> None:
    _set_pairs(it, list(_last(it, 2)))


@_op(b"u")
def _set_items(it: Machine) -> None:
    _set_pairs(it, it.marked())


def _set_pairs(it: Machine, items: list[Any]) -> None:
    target = it.stack[-1]
    if not isinstance(target, dict) or len(items) % 2:
        raise Damaged(f"{len(items)} keys and values are given to {short(target)}")
    before = size(target)
    for key, value in zip(items[::2], items[1::2], strict=True):
        check_key(key)
        target[key] = value
    it.budget.spend(size(target) - before)


@_op(b"c")
def _global(it: Machine) -> None:
    module = it.line()
    it.push(it.find(module, it.line()))


@_op(0x93)
def _stack_global(it: Machine) -> None:
    module, name = _last(it, 2)
    if not isinstance(module, str) or not isinstance(name, str):
        raise Damaged("the name of a global is no text")
    it.push(it.find(module, name))


@_op(b"R")
def _reduce(it: Machine) -> None:
    function, arguments = _last(it, 2)
    it.made(_called(it, function, function.call if isinstance(function, Allowed) else None, arguments))


@_op(0x81)
def _new(it: Machine) -> None:
    kind, arguments = _last(it, 2)
    it.made(_called(it, kind, kind.new if isinstance(kind, Allowed) else None, arguments))


@_op(0x92)
def _new_with_keywords(it: Machine) -> None:
    kind, arguments, keywords = _last(it, 3)
    if keywords != {}:
        raise Refused("an object that is made with keywords, which is not read")
    it.made(_called(it, kind, kind.new if isinstance(kind, Allowed) else None, arguments))


def _called(it: Machine, function: object, make: Callable[..., Any] | None, arguments: object) -> Any:
    name = function.name if isinstance(function, Allowed) else short(function)
    if make is None:
        raise Refused(f"a call of {name}, which is not allowed")
    if type(arguments) is not tuple:
        raise Damaged(f"the arguments of {name} are no tuple")
    try:
        return make(it.budget.spend, *arguments)
    except (TypeError, ValueError, OverflowError) as error:
        raise Damaged(f"{name} cannot have these arguments: {str(error)[:_SHOWN]}") from None


@_op(b"b")
def _build(it: Machine) -> None:
    state = it.stack.pop()
    target = it.stack[-1]
    build = getattr(target, "build", None)
    if build is None:
        raise Refused(f"a state for {target.name if isinstance(target, Allowed) else short(target)}, which cannot have one")
    it.budget.spend(size(state) if isinstance(state, dict) else 0)
    build(state)


@_op(b"Q")
def _persistent(it: Machine) -> None:
    it.made(it.persistent(it.stack.pop()))
