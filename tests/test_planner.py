"""Planner: with the last layout taken again where nothing changed, plans are those that are made without it."""

import dataclasses
import gc
import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import states
from frameworks import jax
from hypothesis import given
from hypothesis import strategies as st

from ckptmgr import CheckpointManager, saving, tree
from ckptmgr import backend as backends
from ckptmgr.layout import Contents, FileLayout, Late, Layout
from ckptmgr.planner import Planner
from ckptmgr.saving import Plan


class Telling:
    """A format whose files hold all that it was told, to the bit."""

    def __init__(self, *, with_scalars: bool, is_late: bool = False) -> None:
        self.with_scalars, self.is_late, self.calls = with_scalars, is_late, 0

    def layout(self, contents: Contents, *, stem: str, align: int) -> Layout:
        self.calls += 1
        told = [contents.files, list(contents.aliases.items()), list(contents.strings.items()), list(contents.paths.items())]

        def text(contents: Contents = contents) -> bytes:
            scalars = [(path, type(value), value) for path, value in contents.scalars.items()] if self.with_scalars else []
            return repr((stem, align, told, scalars)).encode()

        return Layout((FileLayout("file", (Late(None, lambda _: text()) if self.is_late else text(),)),))


class Pair(NamedTuple):
    x: Any
    y: Any


@dataclasses.dataclass
class Record:
    x: Any
    y: Any


def f4(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def tied() -> dict[str, Any]:
    one = f4(2)
    return {"x": one, "y": one}


VARIANTS: dict[str, Callable[[], Any]] = {
    "base": lambda: {"x": f4(2), "y": f4(2)},
    "again": lambda: {"x": f4(2), "y": f4(2)},
    "dtype": lambda: {"x": f4(2), "y": np.ones(2, np.int32)},
    "shape": lambda: {"x": f4(2), "y": f4(2, 1)},
    "order": lambda: {"y": f4(2), "x": f4(2)},
    "tied": tied,
    "tied the other way": lambda: dict(reversed(tied().items())),
    "empty": lambda: {"x": f4(2), "y": f4(0)},
    "view": lambda: {"x": f4(2), "y": f4(4)[:2]},
    "scalar": lambda: {"x": f4(2), "y": 1},
    "bool": lambda: {"x": f4(2), "y": True},
    "float": lambda: {"x": f4(2), "y": 1.0},
    "zero": lambda: {"x": f4(2), "y": 0.0},
    "minus zero": lambda: {"x": f4(2), "y": -0.0},
    "numpy scalar": lambda: {"x": f4(2), "y": np.float32(1)},
    "text": lambda: {"x": f4(2), "y": np.array(["a", "b"])},
    "other text": lambda: {"x": f4(2), "y": np.array(["a", "c"])},
    "no text": lambda: {"x": f4(2), "y": None},
    "one more": lambda: {"x": f4(2), "y": f4(2), "z": f4(2)},
    "int key": lambda: {"x": f4(2), 1: f4(2)},
    "str key": lambda: {"x": f4(2), "1": f4(2)},
    "list": lambda: [f4(2), f4(2)],
    "tuple": lambda: (f4(2), f4(2)),
    "namedtuple": lambda: Pair(f4(2), f4(2)),
    "dataclass": lambda: Record(f4(2), f4(2)),
    "mapping": lambda: OrderedDict(x=f4(2), y=f4(2)),
    "object": lambda: states.Part(x=f4(2), y=f4(2)),
    "nested": lambda: {"x": f4(2), "y": {"y": f4(2)}},
    "escaped": lambda: {"x": {"y": f4(2)}, "x/y": f4(2)},
    "jax": lambda: {"x": jax.numpy.ones(2), "y": jax.numpy.ones(2)},
    "jax and numpy": lambda: {"x": jax.numpy.ones(2), "y": f4(2)},
}


def planned(planner: Planner, state: Any, backend: Any) -> Plan:
    return planner.plan(tree.flatten(state), backend, None)


def text(plan: Plan) -> tuple[Any, ...]:
    pieces = [piece.build({}) if isinstance(piece, Late) else piece for file in plan.layout.files for piece in file.pieces]
    flat = plan.flat
    facts = [list(each.items()) for each in (flat.specs, flat.aliases, flat.strings, flat.paths)]
    scalars = [(path, type(value), value) for path, value in flat.scalars.items()]
    return pieces, repr(flat.skeleton), facts, repr(scalars), list(flat.tensors)


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("with_scalars", [False, True])
def test_any_state_after_any_other_is_planned_as_if_it_were_the_first(with_scalars: bool, is_late: bool) -> None:
    telling = Telling(with_scalars=with_scalars, is_late=is_late)

    for first, second in itertools.product(VARIANTS, repeat=2):
        planner = Planner("stem", None)
        planned(planner, VARIANTS[first](), telling)
        state = VARIANTS[second]()
        again, alone = planned(planner, state, telling), planned(Planner("stem", None), state, telling)
        assert text(again) == text(alone), (first, second)
        assert list(map(id, again.flat.tensors.values())) == list(map(id, alone.flat.tensors.values())), (first, second)


@given(st.lists(states.trees, min_size=1, max_size=3), st.lists(st.integers(0, 2), min_size=2, max_size=5), st.booleans())
def test_random_states_in_any_order_are_planned_as_if_each_were_the_first(
    found: list[Any], order: list[int], with_scalars: bool
) -> None:
    telling, planner = Telling(with_scalars=with_scalars), Planner("stem", None)

    for index in order:
        state = found[index % len(found)]
        assert text(planned(planner, state, telling)) == text(planned(Planner("stem", None), state, telling))


def test_a_layout_is_taken_again_while_only_values_change() -> None:
    telling, planner = Telling(with_scalars=False), Planner("stem", None)

    for step in range(3):
        planned(planner, {"w": f4(2) * step, "step": step, "lr": 0.1 / (step + 1)}, telling)

    assert telling.calls == 1


@pytest.mark.parametrize(
    ("telling", "state"),
    [
        (Telling(with_scalars=True), {"w": f4(2), "step": 1}),
        (Telling(with_scalars=False, is_late=True), {"w": f4(2)}),
        (Telling(with_scalars=False), {"w": f4(2), "s": np.array(["a"])}),
    ],
    ids=["plain values", "late pieces", "strings"],
)
def test_a_layout_with_values_of_the_state_is_not_kept(telling: Telling, state: Any) -> None:
    planner = Planner("stem", None)

    planned(planner, state, telling)
    planned(planner, state, telling)

    assert telling.calls == 2


def test_another_backend_or_limit_is_planned_anew() -> None:
    telling, other, planner = Telling(with_scalars=False), Telling(with_scalars=False), Planner("stem", None)
    flat = tree.flatten({"x": f4(2), "y": f4(2)})

    planner.plan(flat, telling, None)
    planner.plan(flat, other, None)
    cut = planner.plan(flat, other, 8)

    assert (telling.calls, other.calls) == (1, 2)
    assert cut.layout == saving.plan(flat, other, stem="stem", max_file_nbytes=8).layout


def test_no_array_of_a_state_is_kept_alive() -> None:
    planner, safetensors = Planner("model", None), backends.find("safetensors")
    leaf = f4(8)
    gone = weakref.ref(leaf)

    planned(planner, {"w": leaf}, safetensors)
    del leaf
    gc.collect()

    assert gone() is None


@pytest.mark.parametrize("backend", ["safetensors", "hdf5", "tf_bundle"])
def test_steps_saved_with_a_layout_taken_again_hold_their_own_values(tmp_path: Any, backend: str) -> None:
    manager = CheckpointManager(tmp_path, backend=backend)
    saved = [{"w": f4(4) * step, "n": {"b": f4(1, 3) - step}, "step": step, "lr": -0.0} for step in range(3)]
    saved.append({"w": f4(4).astype(np.int64), "n": {"b": f4(3, 1)}, "step": True, "lr": 0})

    for step, state in enumerate(saved):
        manager.save(step, state)

    assert all(states.same(manager.restore(step).state, state) for step, state in enumerate(saved))
