"""Keys of object-based checkpoints, forth and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmgr_tf_bundle import keys
from ckptmgr_tf_bundle.keys import Place

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
local_names = st.text(alphabet="./Sab\x00é", max_size=6)
parts = st.lists(local_names, min_size=1, max_size=4).map(tuple)
places = st.builds(
    Place, parts, st.none() | st.tuples(parts, local_names), st.sampled_from(["VARIABLE_VALUE", "table-keys", "a/b", ".S", ""])
)


@pytest.mark.parametrize(
    ("name", "segment"),
    [
        ("kernel", "kernel"),
        ("a/b", "a.Sb"),
        ("x.y", "x..y"),
        (".S", "..S"),
        ("", ""),
        ("./", "...S"),
        ("..", "...."),
        ("é\0", "é\0"),
    ],
)
def test_a_local_name_is_escaped_as_tensorflow_does(name: str, segment: str) -> None:
    assert keys.escape(name) == segment
    assert keys.unescape(segment) == name


@pytest.mark.parametrize("segment", [".ATTRIBUTES", ".OPTIMIZER_SLOT", "a.b", "...", ".", "a/b", ".s"])
def test_what_no_name_is_escaped_to_is_refused(segment: str) -> None:
    with pytest.raises(ValueError, match="is no escaped name"):
        keys.unescape(segment)


@given(local_names)
def test_unescaping_gives_back_every_name(name: str) -> None:
    assert keys.unescape(keys.escape(name)) == name


@given(local_names)
def test_markers_are_no_escaped_names(name: str) -> None:
    assert keys.escape(name) not in (".ATTRIBUTES", ".OPTIMIZER_SLOT")


def test_key_of_a_variable_has_the_escaped_names_on_its_path() -> None:
    assert keys.key_of(["net", "a/b", "x.y", "0"]) == "net/a.Sb/x..y/0/.ATTRIBUTES/VARIABLE_VALUE"


def test_key_of_another_attribute_ends_with_it() -> None:
    assert keys.key_of(["vocab"], "table-keys") == "vocab/.ATTRIBUTES/table-keys"


def test_key_of_the_root_starts_with_a_slash() -> None:
    assert keys.key_of([]) == "/.ATTRIBUTES/VARIABLE_VALUE"


def test_a_variable_is_named_by_its_raw_path() -> None:
    place = keys.parse("net/a.Sb/x..y" + VALUE)

    assert place == Place(("net", "a/b", "x.y"))
    assert place.name == "net/a/b/x.y"
    assert place.escaped == "net/a.Sb/x..y"
    assert place.path == ("net", "a/b", "x.y")


def test_a_slot_variable_is_named_by_variable_optimizer_and_slot() -> None:
    place = keys.parse("a..b/kernel/.OPTIMIZER_SLOT/opt/x.Sy/m..1" + VALUE)

    assert place == Place(("a.b", "kernel"), (("opt", "x/y"), "m.1"))
    assert place.name == "a.b/kernel/.OPTIMIZER_SLOT/opt/x/y/m.1"
    assert place.path == ("a.b", "kernel", ".OPTIMIZER_SLOT/opt/x/y/m.1")


def test_slot_of_an_optimizer_at_the_root_has_an_empty_path_between() -> None:
    place = keys.parse("w/.OPTIMIZER_SLOT//m" + VALUE)

    assert place == Place(("w",), ((), "m"))


def test_another_attribute_keeps_its_marker_in_the_name() -> None:
    place = keys.parse("vocab/.ATTRIBUTES/table-keys")

    assert place == Place(("vocab",), None, "table-keys")
    assert place.name == "vocab/.ATTRIBUTES/table-keys"
    assert place.path == ("vocab", ".ATTRIBUTES/table-keys")


def test_an_attribute_of_the_root_is_one_key_of_the_state() -> None:
    place = keys.parse("/.ATTRIBUTES/text")

    assert place == Place((), None, "text")
    assert place.path == (".ATTRIBUTES/text",)


def test_an_object_that_is_the_root_itself_has_the_empty_name() -> None:
    place = keys.parse("/.ATTRIBUTES/VARIABLE_VALUE")

    assert place == Place(())
    assert place.name == ""
    assert place.path == ("",)


@pytest.mark.parametrize(
    "key",
    [
        "_CHECKPOINTABLE_OBJECT_GRAPH",
        "",
        "/",
        "w",
        "scope/w",
        ".ATTRIBUTES/VARIABLE_VALUE",
        "w/.ATTRIBUTES",
        "w/.ATTRIBUTES/a/b",
        "w.x/.ATTRIBUTES/VARIABLE_VALUE",
        "w/.ATTRIBUTES/a.b",
        "w/.ATTRIBUTES/x/.ATTRIBUTES/VARIABLE_VALUE",
        "w/.OPTIMIZER_SLOT/.ATTRIBUTES/VARIABLE_VALUE",
        "w/.OPTIMIZER_SLOT/m/.ATTRIBUTES/VARIABLE_VALUE",
        ".OPTIMIZER_SLOT/opt/m/.ATTRIBUTES/VARIABLE_VALUE",
        "w/.OPTIMIZER_SLOT/a/.OPTIMIZER_SLOT/b/m/.ATTRIBUTES/VARIABLE_VALUE",
    ],
)
def test_a_key_that_tensorflow_would_not_make_stands_for_no_place(key: str) -> None:
    assert keys.parse(key) is None


@given(places)
def test_a_place_and_its_key_tell_the_same(place: Place) -> None:
    parsed = keys.parse(place.key)

    assert parsed is not None
    assert parsed.key == place.key
    assert parsed.attribute == place.attribute


@given(st.text(alphabet="./SaO", max_size=12).map(lambda text: text.replace("O", "/.OPTIMIZER_SLOT/") + VALUE))
def test_a_key_that_stands_for_a_place_is_that_places_key(key: str) -> None:
    place = keys.parse(key)

    assert place is None or place.key == key


@given(places, places)
def test_different_places_of_different_keys_have_different_escaped_names(one: Place, other: Place) -> None:
    assert (one.key == other.key) == (one.escaped == other.escaped)
