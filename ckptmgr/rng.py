"""Random generators of numpy and Python: their state as plain values, and back.

A state is plain: dicts, lists, numbers and small numpy arrays. States read from files are checked against the shape of
a real one first: numpy itself believes what it is given. How often a numpy generator was asked to `spawn` is not part
of its state.
"""

import random
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ckptmgr.errors import CorruptCheckpointError, UnsupportedLeafError

Generator: TypeAlias = np.random.Generator | np.random.BitGenerator | np.random.RandomState | random.Random

_NUMPY = (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
_BIT_GENERATORS = {cls.__name__: cls for cls in _NUMPY}
_POSITIONS = {"pos": 624, "buffer_pos": 4, "has_uint32": 1, "has_gauss": 1}  # the largest that numpy can bear


class RngState(NamedTuple):
    """The state of a generator, and which kind it is: ``"numpy.Generator"``, ``"random.Random"``, ..."""

    kind: str
    state: Any

    @property
    def algorithm(self) -> str:
        """The kind with its bit generator, for comparing and for people."""
        return f"{self.kind}/{self.state['bit_generator']}" if self.kind.startswith("numpy.") else self.kind


def capture(leaf: Any) -> RngState | None:
    """The generator's state, or None if ``leaf`` is no generator.

    Raises:
        UnsupportedLeafError: a generator without a state (`random.SystemRandom`), or over bits that are not numpy's.
    """
    if isinstance(leaf, random.Random):
        if isinstance(leaf, random.SystemRandom):
            raise UnsupportedLeafError("is a random.SystemRandom, which has no state")
        version, words, gauss = leaf.getstate()
        return RngState("random.Random", {"version": version, "words": np.array(words, np.uint32), "gauss": gauss})
    if isinstance(leaf, np.random.Generator):
        found = RngState("numpy.Generator", leaf.bit_generator.state)
    elif isinstance(leaf, np.random.BitGenerator):
        found = RngState("numpy.BitGenerator", leaf.state)
    elif isinstance(leaf, np.random.RandomState):
        found = RngState("numpy.RandomState", leaf.get_state(legacy=False))
    else:
        return None
    if found.state["bit_generator"] not in _BIT_GENERATORS:
        raise UnsupportedLeafError(f"is a generator over {found.state['bit_generator']}, which is none of numpy's own")
    return found


def fill(leaf: Generator, saved: RngState) -> None:
    """Sets the generator to that state; it must be of the same algorithm and checked (`check`)."""
    if isinstance(leaf, np.random.Generator):
        leaf.bit_generator.state = saved.state
    elif isinstance(leaf, np.random.BitGenerator):
        leaf.state = saved.state
    elif isinstance(leaf, np.random.RandomState):
        leaf.set_state(saved.state)
    else:
        state = saved.state
        leaf.setstate((state["version"], tuple(state["words"].tolist()), state["gauss"]))


def rebuild(saved: RngState) -> Generator:
    """A new generator of that state, which must be checked (`check`)."""
    made = _new(saved)
    fill(made, saved)
    return made


def check(saved: RngState) -> None:
    """Makes sure that a state read from a file can be given to a generator.

    Raises:
        CorruptCheckpointError: of no known algorithm, or not the state of one.
    """
    try:
        made = _new(saved)
        model = capture(made)
        assert model is not None  # it was made from one
        _compare(saved.state, model.state)
        fill(made, saved)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise CorruptCheckpointError(f"a stored state of {saved.kind!r} is not valid: {error}") from error


def _new(saved: RngState) -> Generator:
    if saved.kind == "random.Random":
        return random.Random(0)
    bits = _BIT_GENERATORS[saved.state["bit_generator"]](0)
    if saved.kind == "numpy.BitGenerator":
        return bits
    wrap: type[np.random.Generator | np.random.RandomState]
    wrap = {"numpy.Generator": np.random.Generator, "numpy.RandomState": np.random.RandomState}[saved.kind]
    return wrap(bits)


def _compare(state: Any, model: Any, key: str = "") -> None:
    if isinstance(model, dict):
        if not isinstance(state, dict) or state.keys() != model.keys():
            raise ValueError(f"it needs {sorted(model)}")
        for name, value in model.items():
            _compare(state[name], value, name)
    elif isinstance(model, np.ndarray):
        if not isinstance(state, np.ndarray) or (state.dtype, state.shape) != (model.dtype, model.shape):
            raise ValueError(f"{key} must be {model.dtype}{list(model.shape)}")
    elif key == "gauss":
        if state is not None and type(state) is not float:
            raise ValueError("gauss must be a number")
    elif type(state) is not type(model):
        raise ValueError(f"{key} must be {type(model).__name__}")
    elif key in _POSITIONS and not 0 <= state <= _POSITIONS[key]:
        raise ValueError(f"{key} must be 0 to {_POSITIONS[key]}, not {state}")
