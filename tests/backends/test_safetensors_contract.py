"""The safetensors backend keeps every promise of a backend."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ckptmgr.testing import BackendContract
from ckptmgr_safetensors import SafetensorsBackend

GOLDEN = Path(__file__).parents[1] / "golden" / "safetensors"
REFUSED = {
    *("float128", "float96", "complex128", "complex192", "complex256", "string", "datetime64[ns]", "timedelta64[ns]"),
    *("int2", "uint2", "int4", "uint4", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"),
    *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz"),
}


class TestSafetensors(BackendContract):
    backend = SafetensorsBackend()
    refuses = frozenset(REFUSED)

    def stored_name(self, path: tuple[str | int, ...]) -> str:
        return ".".join(map(str, path))

    def misaligned_file(self) -> tuple[str, bytes, Mapping[str, np.ndarray]]:
        tensors = {"a": np.array([1, 2, 3], np.uint8), "z": np.array([1.5, -2.5], np.float32)}
        return "foreign.safetensors", (GOLDEN / "foreign_layout.safetensors").read_bytes(), tensors
