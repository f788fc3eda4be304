"""What is in a store on local disk, in the shortest words."""

from pathlib import Path

from ckptmgr.storage import PosixStore


def put(store: PosixStore, key: str, data: bytes = b"x") -> None:
    store.put(key, [[data]], len(data))


def read(store: PosixStore, key: str) -> bytes | None:
    found = store.read(key)
    return None if found is None else found[0]


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
