"""Saves, restores and converts in every format that can be written here: ``python every_format_program.py FOLDER``."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np

import ckptmgr
from ckptmgr import CheckpointManager, MissingDependencyError, backend

STATE = {"w": np.arange(10_000, dtype=np.float32), "rng": np.random.default_rng(7), "names": ["a", "b"], "step": 3}
STEP = "step-00000002"
WRITTEN = ["hdf5", "npz", "safetensors", "tf_bundle", "torch"]


def check_every_module() -> None:
    """Imports them all, and prints the names of what some would need."""
    needed: set[str | None] = set()
    root = Path(ckptmgr.__file__).parents[1]
    for path in sorted(path for package in root.glob("ckptmgr*") for path in package.rglob("*.py") if path.stem != "__main__"):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            needed.add(error.name)
        except MissingDependencyError as error:
            needed.add(str(error).partition(" ")[0])
    sys.stdout.write(f"{sorted(map(str, needed))}\n")


def main(folder: Path) -> None:
    check_every_module()
    for name in WRITTEN:
        manager = CheckpointManager(folder / name, backend=name, incremental=True)
        for step in (1, 2):
            manager.save(step, STATE, metrics={"loss": 1 / step})
        restored = CheckpointManager(folder / name).restore().state
        assert restored["w"].tobytes() == STATE["w"].tobytes()
        assert restored["rng"].bit_generator.state == STATE["rng"].bit_generator.state
        assert (restored["names"], restored["step"]) == (["a", "b"], 3)
        converted = CheckpointManager(folder / f"{name}-converted", backend=WRITTEN[WRITTEN.index(name) - 1])
        ckptmgr.convert(folder / name / STEP, converted, step=2)
        assert ckptmgr.diff(folder / name / STEP, folder / f"{name}-converted" / STEP).is_same
    sys.stdout.write(f"{backend.available()}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
