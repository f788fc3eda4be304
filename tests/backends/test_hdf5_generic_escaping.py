"""Any key of a state is a name in HDF5, and comes back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptmgr_hdf5.escaping import escape, unescape

KEYS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("%/.\x00"))


@given(KEYS)
def test_every_key_comes_back(key: str) -> None:
    assert unescape(escape(key)) == key


@given(KEYS)
def test_every_name_is_one_that_hdf5_reaches(key: str) -> None:
    name = escape(key)

    assert name not in ("", ".", "..")
    assert not {"/", "\0"} & {*name}


@given(KEYS, KEYS)
def test_two_keys_have_two_names(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == (one == other)


@given(KEYS)
def test_no_key_has_the_name_of_a_group_of_ours(key: str) -> None:
    assert escape(key) != "%blobs"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("kernel:0", "kernel:0"),
        ("a.b", "a.b"),
        ("...", "..."),
        ("a/b", "a%2Fb"),
        ("100%", "100%25"),
        ("nul\0", "nul%00"),
        ("", "%"),
        (".", "%2E"),
        ("..", "%2E%2E"),
    ],
)
def test_names_are_the_keys_where_they_can_be(key: str, name: str) -> None:
    assert escape(key) == name


def test_a_surrogate_has_no_name() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        escape("\ud800")


def test_percent_signs_that_mean_nothing_stay() -> None:
    assert unescape("5%a%2") == "5%a%2"
