"""Shared by all tests: `tests/` itself is importable (``from stores import MemoryStore``), and Hypothesis is steady."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ckptmgr import CheckpointManager, ledger
from ckptmgr.storage import Folder

sys.path.insert(0, str(Path(__file__).parent))
import frameworks
from stores import MemoryStore

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow tells of CPU features at every start

# Shared machines are noisy: a slow example is no failure, and what failed once must fail again.
settings.register_profile("ckptmgr", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
# For hours: `pytest --hypothesis-profile=long tests/backends`, or any other choice of tests; new examples each time.
settings.register_profile("long", deadline=None, max_examples=50_000, suppress_health_check=list(HealthCheck))
settings.load_profile("ckptmgr")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of frameworks come last: others fork."""
    items.sort(key=lambda item: bool(frameworks.named_by(item.module)))


def pytest_collection_finish() -> None:
    """From here on frameworks may be used."""
    frameworks.Lazy.is_collecting = False


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test finds the frameworks that its module names imported."""
    for framework in frameworks.named_by(item.module):
        framework.load()


@pytest.fixture
def manager(tmp_path: Path) -> CheckpointManager:
    """A manager of a new run in ``tmp_path / "run"``."""
    return CheckpointManager(tmp_path / "run")


@pytest.fixture
def store() -> MemoryStore:
    """An empty store in memory."""
    return MemoryStore()


@pytest.fixture
def root(store: MemoryStore) -> Folder:
    """The folder of a run in that store."""
    return Folder(store)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives up soon what is tried again and again."""
    monkeypatch.setattr(ledger, "PATIENCE_S", 0.2)
    monkeypatch.setattr(ledger, "FIRST_PAUSE_S", 0.0)
