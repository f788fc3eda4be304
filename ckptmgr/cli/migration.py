"""``ckptmgr migrate``: brings the steps of a run into another, copied or converted, many at a time."""

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Annotated, Any, cast

import typer

from ckptmgr import MigrateReport, MigrationError, migrate
from ckptmgr.cli.completing import formats
from ckptmgr.cli.convert import Cast, Rename, Select, pair
from ckptmgr.cli.following import end_with_parent
from ckptmgr.cli.interrupting import uninterrupted
from ckptmgr.cli.output import AsJSON, complain, counted, emit, emit_json, progress, size, usage
from ckptmgr.cli.storing import Storage, TargetStorage, options_of_both
from ckptmgr.cli.target import DEFAULT_NAMING, RunURL, Template, folder, step_naming
from ckptmgr.copying import Readback, Wanted
from ckptmgr.migrating import plan_migration

Target = Annotated[str, typer.Argument(metavar="DST", help="Folder of the run that gets them.", show_default=False)]
To = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="FORMAT",
        help="Their new format; by default each keeps its own.",
        show_default=False,
        autocompletion=formats,
    ),
]
Steps = Annotated[str, typer.Option("--steps", "--step", metavar="STEPS", help="Which: 'all', 'latest', or numbers with commas.")]
Workers = Annotated[int, typer.Option("--workers", min=1, help="How many steps at a time.")]
Processes = Annotated[bool, typer.Option("--processes", help="Processes do the work, not threads.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace other steps of the same numbers.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what would be copied and converted. Nothing is written.")]
Fast = Annotated[bool, typer.Option("--fast", help="Do not read back what was written; compare its sizes only.")]


def migrate_run(
    src: RunURL,
    dst: Target,
    to: To = None,
    steps: Steps = "all",
    workers: Workers = 4,
    processes: Processes = False,
    select: Select = None,
    rename: Rename = None,
    dtypes: Cast = None,
    overwrite: Overwrite = False,
    fast: Fast = False,
    dry_run: DryRun = False,
    template: Template = DEFAULT_NAMING,
    storage: Storage = None,
    target_storage: TargetStorage = None,
    as_json: AsJSON = False,
) -> None:
    """Bring a run, ours or another tool's, into another run.

    Its steps are copied, or with --to converted. Steps that are there already from the same source are passed over: run the
    same command again after any interruption. Exits with 1 if a step was not migrated; the others are.
    """
    source_options, target_options = options_of_both(src, dst, storage, target_storage)
    folder(src, source_options)
    folder(dst, target_options)
    options: dict[str, Any] = {
        "to": to,
        "steps": _wanted(steps),
        "rename": [pair("--rename", rule) for rule in rename or ()],
        "select": select or None,
        "cast": dict(pair("--cast", each) for each in dtypes or ()),
        "overwrite": overwrite,
        "naming": step_naming(template),
        "src_options": source_options or None,
        "dst_options": target_options or None,
    }
    if dry_run:
        with usage("migrate"):
            report = plan_migration(src, dst, **options)
    else:
        with progress("migrate") as shown, _pool(workers, processes=processes) as pool, usage("migrate"):
            try:
                verify: Readback = "fast" if fast else "full"
                report = migrate(src, dst, executor=pool, workers=workers, verify=verify, progress=shown, **options)
            except MigrationError as error:
                report = cast(MigrateReport, error.report)
    if as_json:
        emit_json({"dry_run": dry_run, **report.to_json()})
    else:
        _emit(report, dry_run=dry_run)
    for each in report.failed:
        complain(f"step {each.step} {'cannot be' if dry_run else 'was not'} migrated: {each.message}")
    if report.failed:
        raise typer.Exit(1)


@contextmanager
def _pool(workers: int, *, processes: bool) -> Iterator[Executor | None]:
    if not processes:
        yield None
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent) as pool:
        try:
            with uninterrupted():
                for _ in range(workers):
                    pool.submit(int)  # each starts a process
            yield pool
        except KeyboardInterrupt:
            # What they were at is no step yet, and never becomes one. The pool's own thread may stumble over that, and say so.
            threading.excepthook = lambda _: None
            for worker in multiprocessing.active_children():
                worker.kill()
            raise


def _wanted(text: str) -> Wanted:
    if text in ("all", "latest"):
        return cast(Wanted, text)
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        text = f"{text!r} is neither 'all' nor 'latest' nor numbers with commas between"
        raise typer.BadParameter(text, param_hint="--steps") from error


def _emit(report: MigrateReport, *, dry_run: bool) -> None:
    for each in report.steps:
        lost = f", without {', '.join(each.lost)}" if each.lost else ""
        done = f"would be {each.how}, {size(each.info.nbytes)}" if dry_run else each.how
        emit(f"step {each.info.step}: {'there already' if each.how == 'there' else done}{lost}")
    if dry_run:
        new = [each for each in report.steps if each.how != "there"]
        emit(f"{counted(len(new), 'step')} would be migrated into {report.target}")
    else:
        emit(f"{counted(len(report.steps), 'step')} in {report.target}")
