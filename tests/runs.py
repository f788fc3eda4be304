"""The small states and folders that tests of whole runs share."""

from pathlib import Path

import numpy as np


def state(step: int) -> dict:
    return {"model": {"w": np.full((4, 3), step, np.float32), "b": np.arange(3) + step}, "epoch": step, "note": "é"}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {".ckptmgr.lock"}
