"""Keys of a state as names of HDF5 objects, and back: ``unescape(escape(key)) == key``.

An HDF5 name is no empty text, has no ``/`` and no NUL, and ``.`` is the group itself (``..`` is the one above, to people).
Only such keys, and those with ``%``, are written otherwise than they are.
"""

import re

_ESCAPED = re.compile("[%/\0]")
_CODE = re.compile("%([0-9A-F]{2})")
_WHOLE = {"": "%", ".": "%2E", "..": "%2E%2E"}


def escape(key: str) -> str:
    """The name of an object for that key; what `escape` gives never starts with ``%`` and a small letter.

    Raises:
        ValueError: the key has a surrogate, which UTF-8 has not.
    """
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise ValueError("names are UTF-8, which has no surrogates") from error
    if key in _WHOLE:
        return _WHOLE[key]
    return _ESCAPED.sub(lambda found: f"%{ord(found[0]):02X}", key)


def unescape(name: str) -> str:
    """The key whose name this is; a name that `escape` does not give, likewise."""
    if name == "%":
        return ""
    return _CODE.sub(lambda found: chr(int(found[1], 16)), name) if "%" in name else name
