"""Collection that is put off comes back, whatever happens meanwhile."""

import gc
import threading

import pytest

from ckptmgr import garbage


def test_collection_is_off_inside_and_on_afterwards() -> None:
    with garbage.later():
        inside = gc.isenabled()

    assert (inside, gc.isenabled()) == (False, True)


def test_collection_comes_back_after_an_error() -> None:
    with pytest.raises(KeyError), garbage.later():
        raise KeyError

    assert gc.isenabled()


def test_collection_stays_off_where_a_program_has_switched_it_off() -> None:
    gc.disable()
    try:
        with garbage.later():
            pass

        assert not gc.isenabled()
    finally:
        gc.enable()


def test_collection_comes_back_only_when_the_last_of_several_threads_is_done() -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with garbage.later():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with garbage.later():
        thread.start()
        entered.wait(10)
    while_other_runs = gc.isenabled()
    leave.set()
    thread.join()

    assert (while_other_runs, gc.isenabled()) == (False, True)
