"""HDF5 files and Keras' layouts for ckptmgr, without Keras; found through the entry point ``hdf5``.

Where to look:

- `backend` is the format; `opening` leads from a path to tensors, `source` and `tensors` hand them out.
- Files of ours: `generic` (written), `own` (read), `carriage`, `dtypes`, `escaping`, `scalars`, `filesets`. Of others: `foreign`.
- Keras' files: `keras_reading` and what starts with ``keras_``; `keras_writing`, `swapping`.
- HDF5 itself, read: `parsing`, over `superblock`, `headers`, `alike`, `messages`, `kinds`, `groups`, `attributes`, `heaps`,
  `blocks`.
- HDF5 itself, written: `encoding`, over `datatypes`, `symbol_tables`, `global_heap`.
- By h5py, in a process of its own: `worker`, `process`, `answers`; in that process `child` and `vetting`.
"""

from ckptmgr_hdf5.backend import HDF5Backend
from ckptmgr_hdf5.keras_reading import has_unsafe_config

__all__ = ["HDF5Backend", "has_unsafe_config"]
