"""NumPy's ``.npz`` files for ckptmgr."""

from ckptmgr_npz.backend import NpzBackend

__all__ = ["NpzBackend"]
