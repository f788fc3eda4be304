"""Saves checkpoints with Orbax: ``python orbax_program.py FOLDER``. A process of its own, because JAX has threads."""

import sys
from typing import Any

import ml_dtypes
import numpy as np

FORMS = {"ocdbt": (True, False), "ocdbt3": (True, True), "zarr": (False, False), "zarr3": (False, True)}  # OCDBT, zarr 3


def state(step: int = 7) -> dict[str, Any]:
    random = np.random.default_rng(step)
    dtypes = ("float64", "float32", "float16", "int64", "int8", "uint16", "bool")
    bits = random.integers(0, 1 << 16, (5, 3), np.uint16)
    return {
        "params": {
            **{name: (random.random((4, 3)) * 2).astype(name) for name in dtypes},
            "bfloat16": bits.view(ml_dtypes.bfloat16),
            "float8": random.integers(0, 256, 9, np.uint8).view(ml_dtypes.float8_e4m3fn),
            "list": [np.zeros(2, np.int8), {"x": np.ones(1)}],
            "dot.ted": np.ones(2),
        },
        "step": step,
        "rate": 0.5,
        "name": "hello",
        "none": None,
        "empty": {},
        "nothing": [],
    }


def main() -> None:
    import orbax.checkpoint as ocp

    folder = sys.argv[1]
    for name, (is_ocdbt, is_zarr3) in FORMS.items():
        ocp.PyTreeCheckpointer(use_ocdbt=is_ocdbt, use_zarr3=is_zarr3).save(f"{folder}/{name}", state())
    with ocp.CheckpointManager(f"{folder}/run") as manager:
        for step in (5, 10):
            manager.save(step, args=ocp.args.StandardSave({"w": np.full(3, step), "step": step}))
    with ocp.CheckpointManager(f"{folder}/several") as manager:
        one, other = ocp.args.StandardSave({"w": np.ones(3)}), ocp.args.StandardSave({"v": np.zeros(2)})
        manager.save(1, args=ocp.args.Composite(model=one, ema=other, more=ocp.args.JsonSave({"x": 1})))


if __name__ == "__main__":
    main()
