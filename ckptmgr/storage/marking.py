"""What a listing of all objects below a prefix tells, page by page, and when it is better given up."""

from collections.abc import Iterable, Mapping, Sequence

from ckptmgr.storage.store import Marked

FEW = 4_000  # files that are always listed: a few pages


def gathered(pages: Iterable[Sequence[tuple[str, Marked]]], most: int) -> Mapping[str, Marked] | None:
    """The files of all pages; None if there are many, and more than ``most`` for each folder so far. See `MarkingStore.below`."""
    files: dict[str, Marked] = {}
    folders: set[str] = set()
    for page in pages:
        files.update(page)
        folders.update(name.partition("/")[0] for name, _ in page)
        if len(files) > max(FEW, most * len(folders)):
            return None
    return files


def bare(e_tag: str | None) -> str | None:
    """An ETag as a mark: some listings leave out the quotes that it has elsewhere."""
    return e_tag.removeprefix("W/").strip('"') if e_tag else None
