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
    """An ETag as a mark: some listings leave out the quotes that it has elsewhere.

    None for one that other bytes may have too: an empty one, and one that is weak, as RFC 9110 (8.8.1) has it.
    """
    return None if not e_tag or e_tag.startswith("W/") else e_tag.strip('"') or None
