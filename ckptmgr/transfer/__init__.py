"""The engine that moves all bytes of tensors, for every format and every store.

`write` moves tensors from a source into the files of a `Layout`, `read` moves them from their extents into arrays,
`check` compares files with what was written. Bytes move once, straight between the store and the arrays' own memory;
checksums are made on the way; memory beyond the arrays is a few windows of the store's size, however large the state.

A window is what the store gets or gives at once. ``writing`` makes windows from tensors; ``planning`` decides which
windows bring wanted tensors, ``bulk`` does so for many whole ones at once, and ``reading`` fills the arrays, which come from
``slabs``. Threads are in ``lanes``.
"""

from ckptmgr.transfer.checking import Place, Problem, check
from ckptmgr.transfer.planning import Want
from ckptmgr.transfer.reading import Memory, Verify, read, read_new
from ckptmgr.transfer.slabs import pages
from ckptmgr.transfer.stats import Progress, Stats
from ckptmgr.transfer.writing import Written, WrittenFile, write

__all__ = [
    "Memory",
    "Place",
    "Problem",
    "Progress",
    "Stats",
    "Verify",
    "Want",
    "Written",
    "WrittenFile",
    "check",
    "pages",
    "read",
    "read_new",
    "write",
]
