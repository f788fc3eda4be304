"""What a migration would do, told beforehand: it is what the migration then does, and nothing is changed by telling."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import state
from safetensors.numpy import save_file
from test_copying_plan import held

from ckptmgr import CheckpointManager, MigrateReport, MigrationError, migrate
from ckptmgr.migrating import plan_migration


def nothing(source: Path, target: Path) -> None:
    """An empty target."""


def there(source: Path, target: Path) -> None:
    migrate(source, target, steps=[2, 500])


def other(source: Path, target: Path) -> None:
    CheckpointManager(target).save(2, state(9))
    CheckpointManager(target).save(500, state(9))


def beside(source: Path, target: Path) -> None:
    target.mkdir()
    save_file({"w": np.zeros(2)}, target / "ckpt-2.safetensors")


def damaged(source: Path, target: Path) -> None:
    (source / "step-00000002" / "manifest.json").write_bytes(b"damaged")


CASES = [nothing, there, other, beside, damaged]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"overwrite": True},
    {"to": "hdf5"},
    {"to": "safetensors", "select": "*"},
    {"steps": [2, 600]},
    {"to": "unheard"},
]


def told(report: MigrateReport) -> Any:
    failed = [(each.step, each.kind, each.message) for each in report.failed]
    return report.source, report.target, [(each.info.step, each.how) for each in report.steps], failed


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_migration_does_what_was_told(tmp_path: Path, case: Callable[[Path, Path], None], options: dict[str, Any]) -> None:
    source, target = tmp_path / "run", tmp_path / "other"
    for step in (1, 2, 3):
        CheckpointManager(source).save(step, state(step))
    save_file({"w": np.zeros(2)}, source / "ckpt-500.safetensors")
    (source / "checkpoint-600").mkdir()
    save_file({"w": np.zeros(2)}, source / "checkpoint-600" / "model.safetensors")
    case(source, target)
    before = held(tmp_path)

    planned = plan_migration(source, target, **options)

    assert held(tmp_path) == before
    assert target.exists() is (case not in (nothing, damaged))
    try:
        done = migrate(source, target, **options)
    except MigrationError as error:
        done = error.report
    assert told(planned) == told(done)


def test_what_cannot_be_asked_for_is_refused_as_by_the_migration(tmp_path: Path) -> None:
    CheckpointManager(tmp_path / "run").save(1, state(1))

    with pytest.raises(ValueError, match="into itself"):
        plan_migration(tmp_path / "run", tmp_path / "run")
    with pytest.raises(LookupError, match="step 7"):
        plan_migration(tmp_path / "run", tmp_path / "other", steps=7)
