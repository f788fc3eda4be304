"""What every backend promises, as tests that a plugin's author runs too.

::

    from ckptmgr.testing import BackendContract

    class TestMyBackend(BackendContract):
        backend = MyBackend()
        refuses = frozenset({"string", "complex256"})   # and say so in the backend's documentation

Needs pytest. Everything is written through the engine and read through `TensorSource`, as a manager does it.
"""

import pytest

# Before the module is imported: its assertions then explain themselves as those of a test module do.
pytest.register_assert_rewrite("ckptmgr.testing.contract")

from ckptmgr.testing.contract import BackendContract  # noqa: E402
from ckptmgr.testing.pipe import ForwardStore  # noqa: E402
from ckptmgr.testing.samples import DTYPES, sample  # noqa: E402

__all__ = ["DTYPES", "BackendContract", "ForwardStore", "sample"]
