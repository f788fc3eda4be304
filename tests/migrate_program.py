"""Migrates a run on workers of one kind: ``python migrate_program.py KIND SOURCE TARGET FLAG OPTIONS``.

It says what became of it as JSON. The options, of the storage of both, are JSON, too.
The first worker that is about to commit step 25 makes the file FLAG and dies of SIGKILL.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from ckptmgr import MigrationError, migrate
from ckptmgr.commit import Attempt

STEP = 25


def arm(flag: str) -> None:
    """Lets this process die in the middle of the step, if it is the first to get there: files written, nothing committed."""
    commit = Attempt.commit

    def commit_or_die(attempt: Attempt, *arguments: Any, **options: Any) -> Any:
        if attempt.step == STEP:
            try:
                os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return commit(attempt, *arguments, **options)

    Attempt.commit = commit_or_die  # type: ignore[method-assign]


@contextmanager
def pool(kind: str, flag: str) -> Iterator[Executor]:
    if kind == "threads":
        arm(flag)
        with ThreadPoolExecutor(2) as threads:
            yield threads
    elif kind == "processes":
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, spawn, arm, (flag,)) as processes:
            yield processes
    elif kind == "dask":
        from distributed import Client, LocalCluster

        with (
            LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster,
            Client(cluster) as client,
        ):
            client.run(arm, flag)
            yield client.get_executor()
    else:
        from mpi4py.futures import MPIPoolExecutor

        with MPIPoolExecutor(initializer=arm, initargs=(flag,)) as ranks:
            yield ranks


def main() -> None:
    kind, source, target, flag, given = sys.argv[1:]
    options = json.loads(given)
    with pool(kind, flag) as workers:
        try:
            report = migrate(source, target, to="npz", executor=workers, src_options=options, dst_options=options)
        except MigrationError as error:
            report = error.report
    there, converted = report.done("there"), report.done("converted")
    told = {"there": there, "converted": converted, "failed": [each.step for each in report.failed]}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
