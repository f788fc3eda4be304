"""The torch backend keeps the promises of every backend."""

import io
import zipfile
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from torch_pickles import W, state, tensor

from ckptmgr.testing import BackendContract
from ckptmgr.testing.samples import DTYPES
from ckptmgr_torch import TorchBackend
from ckptmgr_torch.allowed import DTYPES as HELD


class TestTorch(BackendContract):
    backend: ClassVar[TorchBackend] = TorchBackend()
    refuses = frozenset(DTYPES) - frozenset(HELD)

    def misaligned_file(self) -> tuple[str, bytes, Mapping[str, np.ndarray]]:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as target:
            target.writestr("a/data.pkl", state(w=tensor()))
            target.writestr("a/data/0", W)
        data = buffer.getvalue()
        assert data.index(W) % 4
        return "m.pt", data, {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
