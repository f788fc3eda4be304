"""Orbax's checkpoints for ckptmgr, read with tensorstore and without JAX: ``orbax``, folders of one item or several.

`nesting` understands the metadata, `arrays` opens what it names; `source` and `backend` are the two as ckptmgr wants them.
"""

from ckptmgr_orbax.backend import OrbaxBackend

__all__ = ["OrbaxBackend"]
