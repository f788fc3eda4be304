"""Answers that were lost, refused or never came: what the caller of a save is told, and that it is true."""

from collections.abc import Callable
from typing import Any

import pytest
from saves import ONE, RECORD, begin, finish, is_whole, save, write
from stores import LossyStore, MarkedStore, MemoryStore, WrappedStore

from ckptmgr import commit
from ckptmgr.errors import CommitUnknownError, SaveError
from ckptmgr.storage import Answer, Folder, Listing

pytestmark = pytest.mark.usefixtures("impatient")


class Meddling(WrappedStore):
    """Calls a function once, right before or after the n-th change of a record."""

    def __init__(self, inner: Any, meddle: Callable[[], Any], *, before: int | None = None, after: int | None = None) -> None:
        super().__init__(inner)
        self.meddle, self.before, self.after, self.changes = meddle, before, after, 0

    def operate(self, name: str, call: Callable[[], Any]) -> Any:
        if name not in ("create", "replace", "remove"):
            return call()
        self.changes += 1
        if self.changes == self.before:
            self.meddle()
        answer = call()
        if self.changes == self.after:
            self.meddle()
        return answer


@pytest.mark.parametrize("fate", ["applied", "never", "later"])
def test_lost_answer_to_a_claim_is_settled_by_reading(store: MemoryStore, fate: str) -> None:
    lossy = LossyStore(store, [fate])
    attempt = begin(Folder(lossy), 1)

    assert lossy.deliver() in ([], [Answer.NO])
    write(attempt)
    finish(attempt)

    assert is_whole(Folder(store), 1)


@pytest.mark.parametrize("fate", ["applied", "never", "later"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_lost_answer_to_a_commit_is_settled_by_reading(store: MemoryStore, fate: str, overwrite: bool) -> None:
    if overwrite:
        save(Folder(store), 1)
    lossy = LossyStore(store, ["ok", fate])

    info = save(Folder(lossy), 1, overwrite=overwrite)

    assert lossy.deliver() in ([], [Answer.NO])
    assert is_whole(Folder(store), 1)
    assert sorted(store.files) == [f"{ONE}/a-{info.attempt}/file-0", RECORD]


def test_late_create_does_not_revive_a_claim_that_was_swept(store: MemoryStore) -> None:
    lossy = LossyStore(store, ["later"])
    attempt = begin(Folder(lossy), 1)  # its second try came through
    store.delete([RECORD])
    assert lossy.deliver() == [Answer.OK]  # and now the first is there

    with pytest.raises(SaveError, match="taken over"):
        finish(attempt)


@pytest.mark.parametrize("meddler", ["overwrite", "claim", "delete"])
def test_commit_that_was_lost_and_then_changed_is_unknown(store: MemoryStore, meddler: str) -> None:
    root = Folder(store)

    def meddle() -> None:
        if meddler == "overwrite":
            save(root, 1, overwrite=True)
        elif meddler == "delete":
            commit.delete(root, ONE, 1)
        else:
            store.delete([RECORD])
            begin(root, 1)

    # The answer to the commit is lost, though it was made; before it is read back others have been there.
    lossy = LossyStore(Meddling(store, meddle, after=2), ["ok", "applied"])
    before = set(store.files)

    with pytest.raises(CommitUnknownError, match="may or may not be committed") as caught:
        save(Folder(lossy), 1)

    assert caught.value.step == 1
    assert set(store.files) >= before


def test_pin_between_claim_and_commit_is_kept_and_the_commit_tried_again(store: MemoryStore) -> None:
    root = Folder(store)
    save(root, 1)
    meddling = Meddling(store, lambda: commit.pin(root, ONE, 1, "paper"), before=2)

    info = save(Folder(meddling), 1, overwrite=True)

    assert info.pins == {"paper"}
    assert is_whole(root, 1)


def test_record_that_cannot_be_read_back_leaves_the_commit_unknown(store: MemoryStore) -> None:
    class Mute(WrappedStore):
        is_mute = False

        def operate(self, name: str, call: Callable[[], Any]) -> Any:
            if self.is_mute and name == "read":
                raise ConnectionError("reset")
            answer = call()
            if name == "replace":
                self.is_mute, answer = True, Answer.LOST
            return answer

    with pytest.raises(CommitUnknownError) as caught:
        save(Folder(Mute(store)), 1)

    assert isinstance(caught.value.__cause__, ConnectionError)
    assert is_whole(Folder(store), 1)


def test_commit_that_is_never_answered_is_unknown_in_the_end(store: MemoryStore) -> None:
    lossy = LossyStore(store, ["ok", *["never"] * 100_000])

    with pytest.raises(CommitUnknownError):
        save(Folder(lossy), 1)


def test_refused_commit_is_the_error_of_the_storage_and_changes_nothing(store: MemoryStore) -> None:
    save(Folder(store), 1)
    error = OSError(28, "No space left on device")
    root = Folder(_refusing(store, ["ok", error]))

    with pytest.raises(OSError, match="No space") as caught:
        save(root, 1, overwrite=True)

    assert caught.value is error
    assert is_whole(Folder(store), 1)


def test_refused_commit_after_a_lost_one_is_unknown(store: MemoryStore) -> None:
    root = Folder(_refusing(store, ["ok", Answer.LOST, OSError(28, "No space left on device")]))

    with pytest.raises(CommitUnknownError) as caught:
        save(root, 1)

    assert "No space" in str(caught.value.__cause__)


def test_step_that_everybody_changes_all_the_time_is_given_up(store: MemoryStore) -> None:
    class Busy(MemoryStore):
        def create(self, key: str, data: bytes) -> Answer:
            return Answer.NO

    with pytest.raises(TimeoutError, match=r"step-00000001' could not be claimed within 0\.2 s"):
        save(Folder(Busy()), 1)


def test_commit_that_others_always_forestall_is_given_up_as_not_saved(store: MemoryStore) -> None:
    class Busy(MemoryStore):
        def replace(self, key: str, data: bytes, version: object) -> Answer:
            return Answer.NO

    with pytest.raises(SaveError, match="nothing was saved"):
        save(Folder(Busy()), 1)


def _refusing(store: MemoryStore, answers: list[Any]) -> WrappedStore:
    """A store whose conditional calls are done, answered otherwise without being done, or raise, in this order."""
    left = iter(answers)

    class Refusing(WrappedStore):
        def operate(self, name: str, call: Callable[[], Any]) -> Any:
            answer = next(left, "ok") if name in ("create", "replace", "remove") else "ok"
            if isinstance(answer, OSError):
                raise answer
            return call() if answer == "ok" else answer

    return Refusing(store)


def test_a_save_that_no_listing_would_show_is_no_save() -> None:
    class Renaming(MemoryStore):
        """It takes the names of folders for others, as servers do that know no backslash, or no blank at the end."""

        def list(self, prefix: str) -> Listing:
            return super().list(prefix)._replace(folders=("step",) if not prefix else ())

    store = Renaming()
    attempt = begin(Folder(store), 1)
    write(attempt)

    with (
        pytest.raises(OSError, match=r"listing does not show.*nothing was committed.*step-00000001"),
        attempt.undone_if_it_fails(),
    ):
        finish(attempt)

    assert store.files.keys() <= {RECORD}
    assert not any(b"crc32c" in data and b"sequence" in data for data, _ in store.files.values())


def test_a_claim_that_was_swept_is_told_as_such_where_its_record_stays() -> None:
    root = Folder(MarkedStore(has_remove=False))
    attempt = begin(root, 1)
    attempt.abandon()  # as a sweep would

    with pytest.raises(SaveError, match="swept or deleted"):
        finish(attempt)
