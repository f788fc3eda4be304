"""Which part of a training state another tool is to get: what globs say, or else the part that is plainly the model.

The law: nothing is guessed. Where the names do not tell, the error lists what there is.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

from ckptmgr.errors import shown

MODEL = ("model", "module", "net", "network", "params", "state_dict", "model_state_dict", "weights")
_TRAINING = re.compile(r"(?i).*(optim|sched|scaler|rng|random).*|opt|opt_state|ema|history|metrics|callbacks|loops")
_BESIDE_KERAS = ("random", "history", "metrics")  # in a step of a Keras model: what its own files have no place for


class Choice(NamedTuple):
    """Globs on the names of a state, None for all of it; ``prefix`` (``"model/"``) is what to leave out of those names."""

    globs: tuple[str, ...] | None = None
    prefix: str = ""


def by_globs(names: Sequence[str], select: Sequence[str] | str, *, strip: bool) -> Choice:
    """What globs choose; the name of a group means all in it. With ``strip`` the groups that they all begin with go."""
    given = [select] if isinstance(select, str) else list(select)
    globs = tuple(f"{glob}/*" if glob not in names and _is_group(glob, names) else glob for glob in given)
    heads = [re.split(r"[*?\[]", glob)[0].split("/")[:-1] for glob in globs]
    common = [keys[0] for keys in takewhile(lambda keys: len({*keys}) == 1, zip(*heads, strict=False))]
    return Choice(globs, "/".join([*common, ""]) if strip else "")


def of_model(names: Sequence[str]) -> Choice:
    """The model's weights in a state of these names: the group that is called so, or all if nothing else is there.

    Raises:
        ValueError: it is not plain which they are.
    """
    tops = _tops(names)
    found = [top for top in tops if top in MODEL and _is_group(top, names)]
    if len(found) == 1:
        return Choice((f"{found[0]}/*",), f"{found[0]}/")
    if found or any(map(_TRAINING.fullmatch, tops)):
        example = (found or tops)[0]
        text = f"the state has {shown(tops)}, and which of these is the model is not plain"
        raise ValueError(f"{text}: say select={example + '/*'!r}, or select='*' for all of it")
    return Choice()


def of_keras(names: Sequence[str]) -> Choice:
    """What files of Keras hold of a state: its layers and their optimizer, or what `of_model` finds. Raises as that does."""
    tops = _tops(names)
    if "layers" not in tops and "vars" not in tops:
        return of_model(names)
    kept = [top for top in tops if top not in _BESIDE_KERAS]
    return Choice(tuple(f"{top}/*" if _is_group(top, names) else top for top in kept))


def _tops(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.partition("/")[0] for name in names))


def _is_group(name: str, names: Iterable[str]) -> bool:
    return any(each.startswith(f"{name}/") for each in names)
