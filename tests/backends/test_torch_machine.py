"""The pickle machine: what CPython's pickler makes of plain values comes back, and no other bytes do anything but fail."""

import pickle
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_pickles import text

from ckptmgr.errors import CheckpointError
from ckptmgr_torch import allowed, pickling
from ckptmgr_torch.machine import Machine
from ckptmgr_torch.origin import Damaged, Origin
from ckptmgr_torch.values import Set

ORIGIN = Origin("m.pt", "/m.pt")
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=())),
    st.binary(),
    st.complex_numbers(allow_nan=False),
)
KEYS = st.one_of(st.text(), st.integers(-(2**63), 2**63 - 1))
VALUES = st.recursive(
    PLAIN, lambda inner: st.one_of(st.lists(inner), st.dictionaries(KEYS, inner), st.lists(inner).map(tuple)), max_leaves=20
)
PLAIN_OPCODES = [bytes([code]) for code in b"()]}Naesut012bRQ\x81\x85\x86\x87\x88\x8f\x90\x91\x92\x93\x94"]
OPCODES = st.one_of(
    st.sampled_from([*PLAIN_OPCODES, b"h\x00", b"q\x00", b"K\x05", b"G" + b"\x7f" * 8, text("a")]),
    st.sampled_from([f"c{module}\n{name}\n".encode() for module, name in allowed.ALLOWED]),
    st.binary(min_size=1, max_size=3),
)


def error_of(data: bytes) -> str:
    """What one of our errors says; nothing if the pickle is good."""
    try:
        run(data)
    except CheckpointError as error:
        return str(error)
    return ""


def run(data: bytes) -> Any:
    def refuse(found: object) -> object:
        raise Damaged("there is nothing outside")

    return Machine(data, allowed.find, refuse, ORIGIN).run("it")


@given(VALUES, st.integers(2, 5))
def test_plain_values_come_back_as_they_were_pickled(value: Any, protocol: int) -> None:
    found = run(pickle.dumps(value, protocol))

    assert found == value
    assert repr(found) == repr(value)  # -0.0, and True that is no 1


@given(VALUES)
def test_what_we_pickle_is_what_cpython_unpickles_and_ours_too(value: Any) -> None:
    data = pickling.dumps(value)

    assert repr(pickle.loads(data)) == repr(value)
    assert repr(run(data)) == repr(value)


@settings(max_examples=1000)
@given(st.lists(OPCODES, max_size=40))
def test_any_opcodes_give_a_value_or_one_of_our_errors(opcodes: list[bytes]) -> None:
    error = error_of(b"\x80\x02" + b"".join(opcodes) + b".")

    assert not error or "/m.pt" in error


@given(VALUES, st.data())
def test_a_pickle_that_is_cut_off_or_changed_gives_only_our_errors(value: Any, data: st.DataObject) -> None:
    good = pickle.dumps(value, data.draw(st.integers(2, 5)))
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + data.draw(st.binary(max_size=2)) + good[at + data.draw(st.integers(0, 2)) :]

    assert len(error_of(bad)) < 2000


def test_sets_come_as_their_items_and_bytearrays_as_bytes() -> None:
    for protocol in (2, 3, 4, 5):
        assert run(pickle.dumps({"s": {3}, "f": frozenset([4]), "b": bytearray(b"x")}, protocol)) == {
            "s": [3],
            "f": [4],
            "b": b"x",
        }
    assert type(run(pickle.dumps({3}, 4))) is Set


def test_large_containers_are_written_in_pieces() -> None:
    value = {"list": list(range(5000)), "dict": {str(n): n for n in range(2500)}}

    assert run(pickling.dumps(value)) == value


def test_old_strings_are_texts_or_bytes() -> None:
    assert run(b"\x80\x02(U\x02abT" + struct.pack("<I", 1) + b"\xfft.") == ("ab", b"\xff")


@pytest.mark.parametrize(
    "name", ["torch.nn.Linear", "builtins.eval", "torch._utils._rebuild_qtensor", "numpy.core.multiarray.fromstring"]
)
def test_no_other_global_is_found(name: str) -> None:
    module, _, attribute = name.rpartition(".")

    with pytest.raises(allowed.Refused, match=name):
        allowed.find(module, attribute)
