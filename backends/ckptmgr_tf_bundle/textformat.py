"""Protobuf's text format, as far as a message of strings and floating numbers needs it.

It takes what the format's grammar takes: comments, both quotes, literals side by side, escapes, lists, several fields
a line, fields of other names with anything in them. Protobuf's own parser is not for files from anywhere: it copies the
whole line for each value of an unknown field (1 MiB of them took over half a minute) and needs 150 bytes of memory for
each blank.

The law: time and memory are linear in the text.

Source: protobuf.dev/reference/protobuf/textformat-spec; protobuf's text_format.py.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from ckptmgr_tf_bundle.origin import Origin

_MAX_PIECES: Final = 1_000_000
_MAX_STRING_NBYTES: Final = 1 << 16

# Possessive throughout: nothing backtracks, and no repeat keeps its way in memory.
_GAP = rb"(?:[ \t\n\v\f\r]++|#[^\n]*+)*+"
_LITERAL = rb"""(?:"(?:[^"\\\n]++|\\[^\n])*+"|'(?:[^'\\\n]++|\\[^\n])*+')"""
_STRING = _LITERAL + b"(?:" + _GAP + _LITERAL + b")*+"
_WORD = rb"[-+.\w]++"
STRING: Final = re.compile(b"(" + _STRING + b")" + _GAP)
NUMBER: Final = re.compile(b"(" + _WORD + b")" + _GAP)
_BLANK: Final = re.compile(_GAP)
_NAME: Final = re.compile(rb"(\w++)" + _GAP + b"(:?+)" + _GAP)
_SCALAR: Final = re.compile(b"(" + _STRING + b"|" + _WORD + b")" + _GAP)
_NESTED: Final = re.compile(b"(?:" + _GAP + b"(?:" + _STRING + b"|" + _WORD + rb"|[:,;/]))*+" + _GAP + rb"([\[{<\]}>])" + _GAP)
_LIST: Final = re.compile(rb"\[" + _GAP)
_LIST_END: Final = re.compile(rb"\]" + _GAP)
_COMMA: Final = re.compile(b"," + _GAP)
_SEPARATOR: Final = re.compile(b"[,;]" + _GAP)
_CLOSER: Final = {b"[": b"]", b"{": b"}", b"<": b">"}

_LITERALS: Final = re.compile(b"#[^\n]*+|(" + _LITERAL + b")")  # a comment may hold quotes
_ESCAPE: Final = re.compile(rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))")
_ESCAPED: Final = dict(zip(b"abfnrtv\\'\"?", b"\a\b\f\n\r\t\v\\'\"?", strict=True))
_FLOAT: Final = re.compile(rb"([-+]?+(?:inf(?:inity)?|nan|(?:\d++\.?+\d*+|\.\d++)(?:e[-+]?+\d++)?))f?", re.IGNORECASE)
_MUST_ESCAPE: Final = re.compile(r'[\x00-\x1f"\\\x7f]')
_SHORT: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def fields(data: bytes, kinds: Mapping[bytes, re.Pattern[bytes]], origin: Origin) -> Iterator[tuple[bytes, list[bytes]]]:
    """The fields of a text in their order: the name and the values, as they are written, of each that ``kinds`` names.

    A kind is `STRING` or `NUMBER`; `string` and `number` tell what such a value means. Any field may have a list of values.

    Raises:
        CorruptCheckpointError: this is no such text, or it has over a million pieces.
    """
    text = _Text(data, origin)
    while not text.is_read():
        name, colon = text.need(_NAME, "the name of a field").groups()
        kind = kinds.get(name)
        if kind is None:
            _skip(text, bool(colon))
        elif colon:
            yield name, _values(text, kind)
        else:
            raise text.wrong("':'")
        text.take(_SEPARATOR)


def string(literals: bytes, origin: Origin) -> str:
    """What one or more literals side by side mean.

    Raises:
        CorruptCheckpointError: an escape is none, the bytes are not UTF-8, or they are written with over 64 KiB.
    """
    if len(literals) > _MAX_STRING_NBYTES:
        raise origin.corrupt(f"a string of {len(literals)} bytes is over the limit of {_MAX_STRING_NBYTES}")
    try:
        return b"".join([_ESCAPE.sub(_meaning, literal[1:-1]) for literal in _LITERALS.findall(literals)]).decode()
    except ValueError as error:
        raise origin.corrupt(f"a string is no text: {error}") from error


def number(word: bytes, origin: Origin) -> float:
    """What a number means; one that is too large is infinite.

    Raises:
        CorruptCheckpointError: the word is no number.
    """
    found = _FLOAT.fullmatch(word)
    if found is None:
        raise origin.corrupt(f"{word[:40]!r} is no number")
    return float(found[1])


def quoted(text: str) -> str:
    """The literal that means ``text``, on one line; letters beyond ASCII stand for themselves."""
    return '"' + _MUST_ESCAPE.sub(lambda found: _SHORT.get(found[0]) or f"\\{ord(found[0]):03o}", text) + '"'


class _Text:
    """A text that is read from its start to its end, piece by piece, each with the gap behind it."""

    def __init__(self, data: bytes, origin: Origin) -> None:
        self._data = data
        self._origin = origin
        self._position = 0
        self._pieces = 0
        self.take(_BLANK)

    def is_read(self) -> bool:
        return self._position == len(self._data)

    def take(self, piece: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """Goes past the piece, if it is next."""
        self._pieces += 1
        if self._pieces > _MAX_PIECES:
            raise self._origin.corrupt(f"it has more than {_MAX_PIECES} pieces, too many for such a file")
        found = piece.match(self._data, self._position)
        if found:
            self._position = found.end()
        return found

    def need(self, piece: re.Pattern[bytes], words: str) -> re.Match[bytes]:
        found = self.take(piece)
        if found is None:
            raise self.wrong(words)
        return found

    def wrong(self, words: str) -> Exception:
        """The error that says what should be next, in words, and what is."""
        line = self._data.count(b"\n", 0, self._position) + 1
        rest = self._data[self._position : self._position + 20]
        return self._origin.corrupt(f"line {line} should go on with {words}, not with {rest!r}")


def _values(text: _Text, kind: re.Pattern[bytes]) -> list[bytes]:
    words = "a string" if kind is STRING else "a number"
    if not text.take(_LIST):
        return [text.need(kind, words)[1]]
    found: list[bytes] = []
    while not text.take(_LIST_END):
        if found:
            text.need(_COMMA, "',' or ']'")
        found.append(text.need(kind, words)[1])
    return found


def _skip(text: _Text, colon: bool) -> None:
    """Goes past the value of a field of another name: one scalar, or anything in brackets that are closed again."""
    if colon and text.take(_SCALAR):
        return
    closers: list[bytes] = []
    while True:
        bracket = text.need(_NESTED, "a value" if not closers else f"{closers[-1].decode()!r}")[1]
        if bracket in _CLOSER:
            closers.append(_CLOSER[bracket])
        elif not closers or closers.pop() != bracket:
            raise text.wrong("a value")
        if not closers:
            return


def _meaning(escape: re.Match[bytes]) -> bytes:
    octal, hexadecimal, short, long, letter = escape.groups()
    if octal:
        return bytes([int(octal, 8)])
    if hexadecimal:
        return bytes([int(hexadecimal, 16)])
    if short or long:
        return chr(int(short or long, 16)).encode()
    if letter[0] not in _ESCAPED:
        raise ValueError(f"{escape[0]!r} is no escape")
    return bytes([_ESCAPED[letter[0]]])
