import collections
from typing import Any

import numpy as np
import pytest
import states

from ckptmgr.adapter import PlainNumpyAdapter
from ckptmgr.errors import StateMismatchError
from ckptmgr.template import survey

Point = collections.namedtuple("Point", "x y")


def test_generators_are_set_after_objects_are_loaded() -> None:
    class Drawing(states.Part):
        def load_state_dict(self, state: Any) -> None:
            generator.random()

    generator = np.random.default_rng(5)

    states.restored({"rng": np.random.default_rng(1), "part": states.Part(a=1)}, {"rng": generator, "part": Drawing(a=0)})

    assert generator.random() == np.random.default_rng(1).random()


def test_object_takes_what_the_checkpoint_has_and_its_arrays_are_filled() -> None:
    saved = states.Part(step=3, m={0: np.ones(2), 1: np.ones(3)}, groups=[{"lr": 0.1, "betas": (0.9, 0.99)}], best=None)
    part = states.Part(step=0, m={0: np.zeros(2)}, groups=[{"lr": 0.5, "betas": (0.0, 0.0), "new": False}], best=1.0)
    memory = part.state["m"][0]

    restored = states.restored({"part": saved}, {"part": part})
    report = states.report_of({"part": saved}, {"part": states.Part(step=0, groups=[{"new": False}])})

    assert restored["part"] is part
    assert part.loaded == 1
    assert part.state["m"][0] is memory
    assert memory.tolist() == [1, 1]
    assert part.state["m"][1].tolist() == [1, 1, 1]
    assert part.state["groups"] == [{"lr": 0.1, "betas": (0.9, 0.99), "new": False}]
    assert part.state["step"] == 3
    assert part.state["best"] is None
    assert report.kept == ("part/groups/0/new",)


def test_object_that_lacks_one_of_its_arrays_is_told() -> None:
    part = states.Part(m=np.zeros(2), v=np.zeros(2))

    with pytest.raises(StateMismatchError) as info:
        states.restored(states.Part(m=np.ones(2)), part)

    assert info.value.missing == ("v",)
    assert part.loaded == 0


def test_error_of_load_state_dict_passes_with_a_note_of_the_path() -> None:
    class Refusing(states.Part):
        def load_state_dict(self, state: Any) -> None:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError) as info:
        states.restored({"p": [states.Part(a=1)]}, {"p": [Refusing(a=0)]})

    assert info.value.__notes__ == ["raised by load_state_dict() of 'p/0'"]


def test_objects_inside_of_the_state_of_objects_are_loaded_first() -> None:
    order: list[str] = []

    class Named(states.Part):
        def load_state_dict(self, state: Any) -> None:
            order.append(state["name"])

    states.restored(states.Part(name="outer", inner=states.Part(name="inner")), Named(name="", inner=Named(name="")))

    assert order == ["inner", "outer"]


def test_select_leaves_the_rest_of_an_object_as_it_is() -> None:
    part = states.Part(a=np.zeros(1), b=np.zeros(1), n=1)

    states.restored(states.Part(a=np.ones(1), b=np.ones(1), n=2, c=np.ones(1)), part, select="a")

    assert states.same({"a": np.ones(1), "b": np.zeros(1), "n": 1}, part.state)


def test_renamed_objects_keep_their_int_keys_and_lists() -> None:
    saved = {"optimizer": states.Part(state={0: {"m": np.ones(2)}}, groups=[{"params": [0]}])}
    part = states.Part(state={}, groups=[{"params": [0]}])

    states.restored(saved, {"opt": part}, rename=[("optimizer/", "opt/")])

    assert part.state["state"][0]["m"].tolist() == [1, 1]
    assert part.state["groups"] == [{"params": [0]}]


def test_containers_in_the_state_of_an_object_keep_their_types() -> None:
    part = states.Part(point=Point(0, None), order=collections.OrderedDict(), pair=(0, 0), items=[1])

    states.restored(states.Part(point=Point(1, 2), order={"a": 1}, pair=(1, 2), items=[1, 2, 3], more=Point(3, 4)), part)

    assert part.state == {"point": Point(1, 2), "order": {"a": 1}, "pair": (1, 2), "items": [1, 2, 3], "more": (3, 4)}
    assert type(part.state["point"]) is Point
    assert type(part.state["order"]) is collections.OrderedDict


def test_large_state_of_an_object_takes_time_in_proportion() -> None:
    saved = states.Part(m={index: np.ones(1) for index in range(20_000)})
    part = states.Part(m={index: np.zeros(1) for index in range(20_000)})

    states.restored(saved, part)

    assert all(value[0] == 1 for value in part.state["m"].values())


def test_groups_of_arrays_are_surveyed_at_once_and_their_ties_found(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, own = np.ones(2), np.ones(3)
    into = {"a": {"x": shared, "y": own}, "b": {"x": np.ones(2), "y": np.ones(4)}, "c": [shared, np.ones(1)]}
    asked: list[Any] = []
    one_by_one = PlainNumpyAdapter.describe
    monkeypatch.setattr(PlainNumpyAdapter, "describe", lambda self, leaf: asked.append(leaf) or one_by_one(self, leaf))

    template = survey(into)

    assert len(asked) == 2  # those of "c", one of which is known from "a"
    assert [(want.path, want.what.shape, want.tie) for want in template.wanted] == [
        (("a", "x"), (2,), 0),
        (("a", "y"), (3,), 1),
        (("b", "x"), (2,), 2),
        (("b", "y"), (4,), 3),
        (("c", 0), (2,), 0),
        (("c", 1), (1,), 5),
    ]
    assert template.leaves[("c", 0)] is template.leaves[("a", "x")] is shared
