"""Shared by all tests: `tests/` itself is importable (``from stores import MemoryStore``), and Hypothesis is steady."""

import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from ckptmgr import CheckpointManager, ledger
from ckptmgr.storage import Folder

sys.path.insert(0, str(Path(__file__).parent))
import frameworks
from every_store import running
from services import S3, Azure, Gcs, Moto, Proxy, Service
from stores import MemoryStore

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow tells of CPU features at every start
# No test asks anybody but servers of this machine, nor uses credentials that are lying about.
os.environ.update(AWS_EC2_METADATA_DISABLED="true", NO_GCE_CHECK="true", GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false")
os.environ.update(AWS_SHARED_CREDENTIALS_FILE=os.devnull, AWS_CONFIG_FILE=os.devnull)

# Shared machines are noisy: a slow example is no failure, and what failed once must fail again.
settings.register_profile("ckptmgr", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
# For hours: `pytest --hypothesis-profile=long tests/backends`, or any other choice of tests; new examples each time.
settings.register_profile("long", deadline=None, max_examples=50_000, suppress_health_check=list(HealthCheck))
settings.load_profile("ckptmgr")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist looks at the groups when this is done
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that fork come first, then those of cloud stores, whose clients have threads, and then those of frameworks.

    pytest-xdist keeps this order with ``--no-loadscope-reorder``. All tests that ask one server go to one worker.
    """
    items.sort(key=lambda item: (bool(frameworks.named_by(item.module)), item.get_closest_marker("cloud") is not None))
    for item in items:
        if item.get_closest_marker("cloud"):
            item.add_marker(pytest.mark.xdist_group(_server(item)))


def _server(item: pytest.Item) -> str:
    """The server that the test's parameters name, else S3's."""
    named = re.findall(r"\b(s3|gcs|azure|moto)\b", item.name)
    return named[0] if named else "s3"


def pytest_configure() -> None:
    """Tests interrupt themselves and others, which a process that a shell started in the background would not notice."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """From here on frameworks may be used."""
    frameworks.Lazy.is_collecting = False


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test finds the frameworks that its module names imported."""
    for framework in frameworks.named_by(item.module):
        framework.load()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Whatever a test did, and whatever errors it still has: no thread of a transfer is left."""
    if left := [thread for thread in threading.enumerate() if thread.name in ("ckptmgr-lane", "ckptmgr-share")]:
        frames = sys._current_frames()
        stacks = ["".join(traceback.format_stack(frames.get(thread.ident or 0))) for thread in left]
        pytest.fail(f"{item.nodeid} left {len(left)} threads:\n" + "\n".join(stacks), pytrace=False)


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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Service]:
    """A real S3 server with the bucket ``test-bucket``."""
    yield from running(S3())


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[Service]:
    """A stand-in for Google Cloud Storage with the bucket ``test-bucket``."""
    yield from running(Gcs())


@pytest.fixture(scope="session")
def azure_server() -> Iterator[Service]:
    """Microsoft's emulator with the container ``test-container``."""
    yield from running(Azure())


@pytest.fixture(scope="session")
def s3_proxy(s3_server: Service) -> Iterator[Proxy]:
    """A proxy in front of that, for faults."""
    with Proxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def gcs_proxy(gcs_server: Service) -> Iterator[Proxy]:
    """A proxy in front of that, for faults."""
    with Proxy(gcs_server.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def azure_proxy(azure_server: Service) -> Iterator[Proxy]:
    """A proxy in front of that, for faults."""
    with Proxy(azure_server.endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def moto_server() -> Iterator[Service]:
    """moto's S3 with the bucket ``test-bucket``; it takes any signature."""
    yield from running(Moto())


@pytest.fixture(scope="session")
def careless(moto_server: Service) -> Iterator[Service]:
    """The same, with no regard for conditions."""
    with Proxy(moto_server.endpoint) as proxy:
        proxy.rules({"do": "strip", "names": ["If-Match", "If-None-Match"]})
        yield proxy
