"""The npz backend keeps every promise of a backend."""

from ckptmgr.testing import BackendContract
from ckptmgr_npz import NpzBackend


class TestNpz(BackendContract):
    backend = NpzBackend()
    decodes = frozenset({"string"})
