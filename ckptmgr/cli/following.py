"""Workers that end when the process that started them is gone, however it went: nobody else would ever tell them to."""

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """For a worker to begin with. What it is at when the parent is killed is no step yet, and never becomes one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)  # the main thread may wait for work for ever, and is not to be asked
