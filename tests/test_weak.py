"""Whether a store honours conditions: it is tried, and not taken for weak because it answers in few words."""

import secrets

import pytest

from ckptmgr.storage import Answer, Version
from ckptmgr.storage.weak import honours


class Terse:
    """Numbers its files' versions, and tells them only to who reads."""

    def __init__(self, refuses: bool) -> None:
        self.refuses = refuses
        self.files: dict[str, tuple[bytes, int]] = {}
        self.puts = 0

    def read(self, key: str) -> tuple[bytes, Version] | None:
        return self.files.get(key)

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            self.files.pop(key, None)

    def send(self, key: str, data: bytes, version: Version | None) -> tuple[Answer, Version | None]:
        there = self.files.get(key)
        if self.refuses and (there and there[1]) != version:
            return Answer.NO, None
        self.puts += 1
        self.files[key] = data, self.puts
        return Answer.OK, None


@pytest.fixture
def name() -> str:
    return f"test://{secrets.token_hex(4)}"


def test_store_that_tells_no_version_of_a_put_is_asked_for_it(name: str) -> None:
    store = Terse(refuses=True)

    assert honours(store, name)
    assert store.files == {}


def test_store_that_refuses_nothing_is_weak_and_told_so(name: str) -> None:
    with pytest.warns(UserWarning, match="does not honour conditional writes"):
        assert not honours(Terse(refuses=False), name)
