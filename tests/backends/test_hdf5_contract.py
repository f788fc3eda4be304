"""HDF5 files keep every promise that ckptmgr makes of a format."""

import io
from collections.abc import Mapping

import h5py
import numpy as np

from ckptmgr.testing import BackendContract
from ckptmgr_hdf5 import HDF5Backend


class TestHDF5(BackendContract):
    backend = HDF5Backend()
    refuses = frozenset(("float96", "float128", "complex192", "complex256"))
    decodes = frozenset(("string",))

    def misaligned_file(self) -> tuple[str, bytes, Mapping[str, np.ndarray]]:
        tensors = {"b": np.arange(3, dtype=np.int8), "f": np.arange(5.0), "i": np.arange(7, dtype=np.int16)}
        data = io.BytesIO()
        with h5py.File(data, "w", userblock_size=512) as file:
            for name, array in tensors.items():
                file[name] = array
            offsets = [file[name].id.get_offset() for name in tensors]
        assert any(offset % 8 for offset in offsets)
        return "other.h5", data.getvalue(), tensors
