"""Deleting the files of attempts that no record names any more: at any speed, by anybody, and what cannot be is left to sweep."""

import logging
from collections.abc import Sequence

from ckptmgr.manifest import Manifest, folder_name
from ckptmgr.storage import Folder, Head, is_marking

logger = logging.getLogger(__name__)


def files_below(folder: Folder) -> dict[str, Head]:
    """All files at any depth, by their names relative to the folder."""
    listing = folder.list()
    below = {f"{name}/{file}": head for name in listing.folders for file, head in files_below(folder.folder(name)).items()}
    return {**listing.files, **below}


def delete_files(folder: Folder, attempt: str) -> None:
    """Deletes the files of an attempt of this step that is no longer named."""
    place = folder.folder(folder_name(attempt))
    try:
        place.delete([*files_below(place), ""])  # and the folder, which may have been empty already
    except OSError as error:  # the step is gone or replaced all the same
        logger.warning("files in %r are left to sweep: %s", place.location(), error)


def delete_committed(folder: Folder, manifest: Manifest, *, later: list[str] | None = None) -> None:
    """Deletes the files of a manifest that is out of its record, whose attempt is no longer named.

    Where a listing is a request and there are no folders to be removed, these are the files that the manifest names; what
    else lies there is left to sweep. Their keys are put into ``later`` instead, if that is given.
    """
    if not is_marking(folder.store):
        delete_files(folder, manifest.attempt)
        return
    place = folder.folder(folder_name(manifest.attempt))
    keys = [place.key(entry.name) for entry in manifest.files if not entry.origin]
    if later is None:
        delete_keys(folder, keys)
    else:
        later += keys


def delete_keys(folder: Folder, keys: Sequence[str]) -> None:
    """Deletes files by their keys in the folder's store."""
    try:
        if keys:
            folder.store.delete(keys)
    except OSError as error:  # the steps are gone all the same
        logger.warning("%d files in %r are left to sweep: %s", len(keys), folder.location(), error)
