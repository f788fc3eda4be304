"""What a person may point at: a run, a step's folder in it, one attempt's folder, or a file of any tool."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from fsspec.core import split_protocol

from ckptmgr import Checkpoint, CheckpointManager, KeepAll, Retention, StepNaming, open_checkpoint
from ckptmgr.cli.completing import steps
from ckptmgr.cli.output import Report, usage
from ckptmgr.cli.storing import Given, storage_options
from ckptmgr.storage import Folder, LocalListing, is_remote, open_folder

RunURL = Annotated[str, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
TargetURL = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A run, a step's folder, or a checkpoint of any tool.", show_default=False)
]
StepNumber = Annotated[
    int | None,
    typer.Option(
        "--step",
        min=0,
        help="A step of the run.",
        show_default=False,
        autocompletion=steps,
    ),
]
Template = Annotated[str, typer.Option("--naming", metavar="TEMPLATE", help="How the run names its steps.")]

DEFAULT_NAMING = StepNaming().template


def run(
    url: str,
    template: str,
    *,
    retention: Retention | None = None,
    progress: Report | None = None,
    storage: Given = None,
) -> CheckpointManager:
    """The manager of a run that is there. By default it keeps every step. ``storage`` has its options.

    Raises:
        FileNotFoundError: there is nothing at ``url``.
    """
    naming, options = step_naming(template), storage_options(storage)
    with usage("RUN"):
        listing = folder(url, options).list()
    links = listing.links if isinstance(listing, LocalListing) else ()  # there may have been steps
    if not (listing.files or listing.folders or links):
        is_file = not is_remote(url) and os.path.isfile(split_protocol(url)[1])
        why = "it is a file, and 'ckptmgr show' tells what is in it" if is_file else "no such folder, or an empty one"
        raise FileNotFoundError(f"no run at {url!r}: {why}")
    return CheckpointManager(
        url, naming=naming, retention=retention or KeepAll(), progress=progress, storage_options=options or None
    )


def step_naming(template: str) -> StepNaming:
    """How steps are named. Raises BadParameter."""
    with usage("--naming"):
        return StepNaming(template)


def folder(url: str, options: Mapping[str, Any]) -> Folder:
    """The folder at a URL. Raises BadParameter if there is no storage of that kind, or it has no such option."""
    if not url:  # as of a variable that a script has not set: no reason to take the folder it happens to be in
        raise typer.BadParameter("a place has an empty name; this folder is '.'")
    with usage("--storage-option" if options else "URL"):
        try:
            return open_folder(url, options)
        except TypeError as error:  # an option that the storage has not
            raise typer.BadParameter(str(error), param_hint="--storage-option") from error


def is_run(url: str, template: str, storage: Given = None) -> bool:
    """Whether a folder is at ``url``; it may turn out to have no steps."""
    try:
        run(url, template, storage=storage)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextmanager
def checkpoint(url: str, step: int | None, template: str, storage: Given = None) -> Iterator[Checkpoint]:
    """Opens a step of a run (the newest good one by default), or what ``url`` is by itself.

    Raises:
        FileNotFoundError: nothing is there.
        StepNotFoundError: the run has no such step.
        BackendNotFoundError: it is no run, and no backend recognizes it.
    """
    if step is not None or (is_run(url, template, storage) and run(url, template, storage=storage).latest()):
        with run(url, template, storage=storage) as manager, manager.open(step) as opened:
            yield opened
    else:
        with by_itself(url, storage) as opened:
            yield opened


def by_itself(url: str, storage: Given = None) -> Checkpoint:
    """What ``url`` is when it is no run. A folder of several checkpoints is an error of usage.

    Raises:
        FileNotFoundError: nothing is there.
        BackendNotFoundError: no backend recognizes it.
        CorruptCheckpointError: it is too damaged to be opened.
    """
    with usage("CHECKPOINT"):
        return open_checkpoint(url, storage_options=storage_options(storage) or None)
