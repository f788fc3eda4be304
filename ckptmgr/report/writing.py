"""The page as a file: read, rendered, and there as a whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptmgr import CheckpointManager, KeepAll, Retention, StepNaming
from ckptmgr.report.contents import Contents, contents
from ckptmgr.report.rendering import render
from ckptmgr.transfer import Progress


def write_report(
    run: CheckpointManager | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    retention: Retention | None = None,
    tensors: int = 0,
    compare: tuple[int, int] | None = None,
    naming: StepNaming = StepNaming(),  # noqa: B008 - a frozen value
    storage_options: Mapping[str, Any] | None = None,
    url: str | None = None,
    progress: Progress | None = None,
) -> Contents:
    """Writes the page about a run into the local file ``path``, and gives the facts that it shows. Changes nothing in the run.

    Args:
        run: a manager, or the folder of a run by path or URL; then ``naming`` and ``storage_options`` are for that.
        path: what is there is replaced at the end, in one moment; if this raises, it is as it was.
        retention: marks the steps that it would keep; by default the policy of the manager, if one is given and it drops any.
        tensors: how many steps to read the tensors of, for norms and histograms.
        compare: two steps to read, and to show what changed between them.
        url: what the page calls the run, by default where it lies.
        progress: called as ``progress(bytes_done, bytes_total)`` while tensors are read.

    Raises:
        FileNotFoundError: there is nothing at ``run``, or no folder for ``path``.
        StepNotFoundError: a step to be compared is not there.
        CorruptCheckpointError: one of them is damaged. Other damage stands on the page.
        MissingDependencyError: jinja2 or plotly is not installed.
        OSError: from the storage.
    """
    if isinstance(run, CheckpointManager):
        manager, policy = run, None if run.retention == KeepAll() else run.retention
    else:
        manager, policy = CheckpointManager(run, naming=naming, storage_options=storage_options), None
        listing = manager.folder.list()
        if not listing.files and not listing.folders:
            raise FileNotFoundError(f"no run at {os.fspath(run)!r}: no such folder, or an empty one")
    found = contents(manager, url=url, retention=retention or policy, read=tensors, compare=compare, progress=progress)
    _write(Path(path), render(found).encode("utf-8", "replace"))
    return found


def _write(path: Path, data: bytes) -> None:
    """The whole page or the old one, with the permissions that any new file has."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".report-") as folder:
        new = Path(folder) / path.name
        new.write_bytes(data)
        os.replace(new, path)
