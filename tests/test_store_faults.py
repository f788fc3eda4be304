"""A network and a server at their worst: every save is whole or has failed cleanly, and no restore gives a wrong byte."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from debris import debris
from every_store import options, place
from services import Proxy
from store_workers import state, value_of

from ckptmgr import CheckpointManager, CommitUnknownError, CorruptCheckpointError, KeepLast, SaveError, StepNotFoundError

pytestmark = pytest.mark.cloud
RUNS = {"s3": 40, "gcs": 12, "azure": 12}  # at once
LATENCY_S = 0.05
ANYWHERE = [{"do": "status", "code": 500}, {"do": "status", "code": 503}, {"do": "reset"}, {"do": "lose"}]
ANSWERS = [{"do": "truncate", "bytes": 40}, {"do": "reset_resp", "bytes": 40}, {"do": "reset_resp", "bytes": 3_000}]
# Nobody can tell a listing with another letter in it; what the checksums are of is objects.
OBJECTS = [{"method": "GET", "path": r"\.(json|safetensors)", "do": "corrupt", "bytes": each} for each in (100, 3_000)]
SPOILED = [{"method": "PUT", "do": "spoil"}]  # S3 is told a checksum of every body; elsewhere TLS must see to that


@dataclass
class Life:
    """A run that saves and restores through the faults, and what was told to whoever did."""

    manager: CheckpointManager
    saved: list[int] = field(default_factory=list)
    unknown: list[int] = field(default_factory=list)
    restored: int = 0
    errors: list[Exception] = field(default_factory=list)

    def live(self, rounds: int) -> None:
        for step in range(1, rounds + 1):
            try:
                self.manager.save(step, state(step, 20_000))
            except CommitUnknownError as error:
                self.unknown.append(step)
                self.errors.append(error)
            except (SaveError, OSError) as error:
                self.errors.append(error)
                if any("is committed" in note for note in getattr(error, "__notes__", ())):
                    self.saved.append(step)
            else:
                self.saved.append(step)
            self.restore()

    def restore(self) -> None:
        """What was saved last, or may have been, and every byte of it."""
        try:
            found = self.manager.restore()
        except (OSError, CorruptCheckpointError, RuntimeWarning) as trouble:  # a warning tells that the newest is damaged
            self.errors.append(trouble)
        except StepNotFoundError:
            if self.saved:
                raise
        else:
            assert value_of(found.state) == found.step
            assert found.step in {*self.saved[-1:], *self.unknown}
            self.restored += 1


@pytest.fixture
def storm(request: pytest.FixtureRequest) -> Iterator[tuple[Proxy, list[tuple[str, dict[str, Any], dict[str, Any]]]]]:
    """A proxy with faults, and runs: the URL, storage options through the proxy, and without it."""
    server, proxy = (request.getfixturevalue(f"{request.param}_{kind}") for kind in ("server", "proxy"))
    runs = [place(request.param, request) for _ in range(RUNS[request.param])]
    yield proxy, [(url, options(server, proxy.endpoint), given) for url, given in runs]
    proxy.rules()
    proxy.set()


@pytest.mark.slow
@pytest.mark.parametrize(("storm", "rounds"), [("s3", 5), ("gcs", 1), ("azure", 1)], indirect=["storm"])
def test_every_save_is_whole_or_fails_cleanly(storm: tuple[Proxy, list], rounds: int, request: pytest.FixtureRequest) -> None:
    proxy, runs = storm
    lives = [Life(CheckpointManager(url, storage_options=given, retention=KeepLast(2))) for url, given, _ in runs]
    kinds = [*ANYWHERE, *ANSWERS, *OBJECTS, *(SPOILED if "s3" in request.node.name else [])]
    proxy.rules(*({**kind, "prob": 0.05 / len(kinds), "seed": seed} for seed, kind in enumerate(kinds)))
    proxy.set(latency=LATENCY_S)

    with ThreadPoolExecutor(len(lives)) as threads:
        list(threads.map(lambda life: life.live(rounds), lives))

    seen = proxy.requests()
    proxy.rules()
    proxy.set()
    faults = [each["fault"] for each in seen if each["fault"]]
    assert len(faults) > 0.02 * len(seen)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda life, run: check(life, CheckpointManager(run[0], storage_options=run[2])), lives, runs))
    assert sum(len(life.saved) for life in lives) >= 0.9 * rounds * len(lives)
    assert sum(life.restored for life in lives) >= 0.9 * rounds * len(lives)


def check(life: Life, manager: CheckpointManager) -> None:
    """What was told is true, and a sweep leaves nothing but whole steps."""
    manager.sweep(grace=0)
    steps = [info.step for info in manager.steps()]
    assert set(life.saved[-1:]) <= set(steps) <= {*life.saved, *life.unknown}
    assert [value_of(manager.restore(step).state) for step in steps] == steps
    assert manager.verify().ok
    assert debris(manager.folder) == set()
