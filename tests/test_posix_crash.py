"""`PosixStore` when the process dies, or the disk fails, at every single system call that changes something."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from syscalls import Call, counting, dying_at, failing_at, in_child

from ckptmgr.storage import Answer, PosixStore

OLD, NEW = b"old" * 1_000, b"new" * 2_000


class Action(NamedTuple):
    """A call on a store that has OLD at `key` or nothing; and what is there before and after."""

    call: Callable[[PosixStore], Answer | object]
    key: str
    before: bytes | None
    after: bytes | None


def put(key: str) -> Callable[[PosixStore], object]:
    return lambda store: store.put(key, [[NEW[:1_000], NEW[1_000:4_000]], [NEW[4_000:]]], len(NEW))


ACTIONS = {
    "put": Action(put("other/a/file"), "other/a/file", None, NEW),
    "put over": Action(put("step/a/file"), "step/a/file", OLD, NEW),
    "create": Action(lambda store: store.create("other/record", NEW), "other/record", None, NEW),
    "replace": Action(lambda store: store.replace("step/record", NEW, OLD), "step/record", OLD, NEW),
    "remove": Action(lambda store: store.remove("step/record", OLD), "step/record", OLD, None),
    "delete": Action(lambda store: store.delete(["step/a/file"]), "step/a/file", OLD, None),
}


UNCONDITIONAL = [ACTIONS[name].call for name in ("put", "put over", "delete")]


@pytest.fixture(params=ACTIONS)
def action(request: pytest.FixtureRequest) -> Action:
    return ACTIONS[request.param]


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[[], PosixStore]:
    def make() -> PosixStore:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        store = PosixStore(tmp_path / "run", lock_timeout_s=10)
        for key in ("step/a/file", "step/a/other", "step/record", "step/b/file"):
            store.put(key, [[OLD]], len(OLD))
        return store

    return make


def calls_of(action: Action, store: PosixStore) -> list[Call]:
    with counting() as calls:
        action.call(store)
    return calls


def content(store: PosixStore, key: str) -> bytes | None:
    found = store.read(key)
    return None if found is None else found[0]


def temporary_files(store: PosixStore) -> list[str]:
    root = store.location("")
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names if name.endswith(".tmp")]
    return sorted(os.path.relpath(path, root) for path in paths)


def test_death_at_any_call_leaves_the_old_or_the_new(action: Action, fresh: Callable[[], PosixStore]) -> None:
    seen = []
    for n in range(len(calls_of(action, fresh()))):
        for when in ("before", "after"):
            store = fresh()

            def die(store: PosixStore = store, n: int = n, when: str = when) -> None:
                with dying_at(n, when):
                    action.call(store)

            assert in_child(die) == -9

            seen.append(content(store, action.key))
            assert content(store, "step/b/file") == OLD
            assert sorted(upload.key for upload in store.uploads("")) == temporary_files(store)
            assert not any(
                name.startswith(".ckptmgr") for prefix in ("", "step/", "step/a/") for name in store.list(prefix).files
            )

    # Once the change is made it stays made: all the old contents come before all the new ones.
    change = seen.index(action.after)
    assert seen == [action.before] * change + [action.after] * (len(seen) - change)
    assert change > 0


def test_after_a_death_at_any_call_the_next_process_does_the_same(action: Action, fresh: Callable[[], PosixStore]) -> None:
    for n in range(len(calls_of(action, fresh()))):
        store = fresh()

        def die(store: PosixStore = store, n: int = n) -> None:
            with dying_at(n):
                action.call(store)

        assert in_child(die) == -9
        action.call(store)
        for upload in store.uploads(""):
            store.abort(upload)

        assert content(store, action.key) == action.after
        assert temporary_files(store) == []


def naming_call(calls: list[Call]) -> int:
    """The index of the call that makes the change visible."""
    return next(n for n, call in enumerate(calls) if call.name in ("replace", "link", "unlink"))


@pytest.mark.parametrize(("code", "when"), [(errno.ENOSPC, "before"), (errno.EIO, "before"), (errno.EIO, "after")])
def test_an_error_of_any_call_is_told_and_true(action: Action, fresh: Callable[[], PosixStore], code: int, when: str) -> None:
    calls = calls_of(action, fresh())
    for n, call in enumerate(calls):
        store = fresh()
        open_files = os.listdir("/proc/self/fd")
        answer: object = None
        error: OSError | None = None

        try:
            with failing_at(n, code, when):
                answer = action.call(store)
        except OSError as raised:
            error = raised

        assert os.listdir("/proc/self/fd") == open_files
        if error is not None:
            assert error.errno == code
            assert os.path.isabs(error.filename)
            # Only the calls without conditions may raise when the change is made: then all that follows is to sync it.
            is_late = action.call in UNCONDITIONAL and n >= naming_call(calls)
            assert content(store, action.key) in ((action.before, action.after) if is_late else (action.before,)), call
        elif answer is Answer.LOST:
            assert content(store, action.key) in (action.before, action.after)
        else:
            assert answer is not Answer.NO
            assert content(store, action.key) == action.after, call
        if call.name not in ("open", "unlink"):  # what could not be removed, or not even be opened, is left to sweep
            assert temporary_files(store) == []


@pytest.mark.parametrize("name", ["put", "put over", "create", "replace"])
def test_a_full_disk_that_stays_full_changes_nothing(name: str, fresh: Callable[[], PosixStore]) -> None:
    action = ACTIONS[name]
    store = fresh()

    with failing_at(0, errno.ENOSPC, lasting=True), pytest.raises(OSError, match="No space") as caught:
        action.call(store)

    assert caught.value.errno == errno.ENOSPC
    assert content(store, action.key) == action.before


def test_what_a_name_refers_to_is_durable_first(action: Action, fresh: Callable[[], PosixStore]) -> None:
    """Follows what is not on the disk yet: bytes by file, names by folder."""
    unsynced: set[str] = set()
    for call in calls_of(action, fresh()):
        folder = os.path.dirname(call.path)
        if not call.is_done:
            continue
        if call.name == "pwritev":
            unsynced.add(call.path)
        elif call.name == "fsync":
            unsynced.discard(call.path)
        elif call.name in ("replace", "link"):
            assert unsynced == set(), call
            unsynced.add(folder)
        elif call.name in ("mkdir", "rmdir") or (call.name == "unlink" and not call.path.endswith(".tmp")):
            unsynced = unsynced - {call.path} | {folder}

    assert unsynced == set()


def test_a_new_root_is_durable_before_the_first_file(tmp_path: Path) -> None:
    with counting() as calls:
        PosixStore(tmp_path / "runs" / "today" / "7").put("file", [[b"x"]], 1)

    done = [(call.name, os.path.relpath(call.path, tmp_path)) for call in calls[:6]]
    made = [("mkdir", "runs"), ("fsync", "."), ("mkdir", "runs/today"), ("fsync", "runs"), ("mkdir", "runs/today/7")]
    assert done == [*made, ("fsync", "runs/today")]


@pytest.mark.parametrize("name", ["create", "replace", "remove", "delete"])
def test_what_a_change_may_rest_on_is_durable_first(name: str, fresh: Callable[[], PosixStore]) -> None:
    """Another process may have made the folders, or the record that was read, and not synced them yet."""
    store = fresh()
    action = ACTIONS[name]
    if name == "create":
        os.mkdir(store.location("other"))

    calls = calls_of(action, store)

    before = [call.path for call in calls[: naming_call(calls)] if call.name == "fsync"]
    way = os.path.dirname(action.key).split("/")
    assert {store.location(""), *(store.location("/".join(way[: n + 1])) for n in range(len(way)))} <= set(before)


def test_a_lost_answer_of_the_file_server_is_lost(fresh: Callable[[], PosixStore]) -> None:
    for name in ("create", "replace", "remove"):
        calls = calls_of(ACTIONS[name], fresh())
        for n in (naming_call(calls), naming_call(calls) + 1):
            for when in ("before", "after"):
                store = fresh()
                with failing_at(n, errno.ETIMEDOUT, when):
                    assert ACTIONS[name].call(store) is Answer.LOST


def test_create_works_without_hard_links(fresh: Callable[[], PosixStore]) -> None:
    link = naming_call(calls_of(ACTIONS["create"], fresh()))
    for code in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
        store = fresh()
        with failing_at(link, code):
            assert store.create("other/record", NEW) is Answer.OK
        # The folder is there now: where it was made and the root synced, both are synced.
        with failing_at(link, code) as calls:
            assert store.create("other/record", b"another") is Answer.NO

        assert calls[link].name == "link"
        assert content(store, "other/record") == NEW


def test_a_file_system_that_syncs_no_folders_will_do(action: Action, fresh: Callable[[], PosixStore]) -> None:
    for n, call in enumerate(calls_of(action, fresh())):
        if call.name == "fsync" and not call.path.endswith(".tmp"):
            store = fresh()
            with failing_at(n, errno.EINVAL):
                assert action.call(store) is not Answer.LOST

            assert content(store, action.key) == action.after
