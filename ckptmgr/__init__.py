"""Checkpoints that are whole or absent, in standard file formats, for any training framework.

::

    manager = CheckpointManager("runs/7", retention=KeepLast(3))
    step, state = manager.restore_or_initialize(init)
    manager.save(step, state, metrics={"val_loss": 0.31})
"""

from ckptmgr.background import BackgroundSaver
from ckptmgr.box import Box
from ckptmgr.checkpoint import Checkpoint, Restored
from ckptmgr.converting import convert
from ckptmgr.convertreport import ConvertedTensor, ConvertReport
from ckptmgr.copying import Copied, copy
from ckptmgr.diagnosis import Diagnosis, Finding, diagnose
from ckptmgr.differing import diff
from ckptmgr.diffreport import DiffReport, TensorChange, ValueChange
from ckptmgr.errors import (
    BackendNotFoundError,
    CheckpointError,
    CommitUnknownError,
    CorruptCheckpointError,
    FormatVersionError,
    MigrationError,
    MissingDependencyError,
    SaveError,
    StateMismatchError,
    StepExistsError,
    StepNotFoundError,
    UnsafeCheckpointError,
    UnsupportedLeafError,
    UnsupportedTensorError,
)
from ckptmgr.exporting import export
from ckptmgr.files import load, open_checkpoint, save
from ckptmgr.finding import Skipped
from ckptmgr.group import Group, Solo
from ckptmgr.manager import CheckpointManager, VerifyReport
from ckptmgr.migratereport import Migrated, MigrateReport, NotMigrated
from ckptmgr.migrating import migrate
from ckptmgr.naming import StepNaming
from ckptmgr.pending import PendingSave
from ckptmgr.restorereport import Mismatch, RestoreReport
from ckptmgr.retention import (
    KeepAll,
    KeepBest,
    KeepBytes,
    KeepEvery,
    KeepEveryInterval,
    KeepLast,
    KeepWithin,
    Plan,
    Retention,
    Verdict,
)
from ckptmgr.rules import Exact, Glob, Layers
from ckptmgr.rulesets import Rules
from ckptmgr.spec import PackedArray, TensorSpec
from ckptmgr.step import StepInfo
from ckptmgr.swapping import swap_weights
from ckptmgr.sweep import Swept
from ckptmgr.tiers import TieredManager
from ckptmgr.timing import SaveStats
from ckptmgr.transfer import Problem

__all__ = [
    "BackendNotFoundError",
    "BackgroundSaver",
    "Box",
    "Checkpoint",
    "CheckpointError",
    "CheckpointManager",
    "CommitUnknownError",
    "ConvertReport",
    "ConvertedTensor",
    "Copied",
    "CorruptCheckpointError",
    "Diagnosis",
    "DiffReport",
    "Exact",
    "Finding",
    "FormatVersionError",
    "Glob",
    "Group",
    "KeepAll",
    "KeepBest",
    "KeepBytes",
    "KeepEvery",
    "KeepEveryInterval",
    "KeepLast",
    "KeepWithin",
    "Layers",
    "MigrateReport",
    "Migrated",
    "MigrationError",
    "Mismatch",
    "MissingDependencyError",
    "NotMigrated",
    "PackedArray",
    "PendingSave",
    "Plan",
    "Problem",
    "RestoreReport",
    "Restored",
    "Retention",
    "Rules",
    "SaveError",
    "SaveStats",
    "Skipped",
    "Solo",
    "StateMismatchError",
    "StepExistsError",
    "StepInfo",
    "StepNaming",
    "StepNotFoundError",
    "Swept",
    "TensorChange",
    "TensorSpec",
    "TieredManager",
    "UnsafeCheckpointError",
    "UnsupportedLeafError",
    "UnsupportedTensorError",
    "ValueChange",
    "Verdict",
    "VerifyReport",
    "convert",
    "copy",
    "diagnose",
    "diff",
    "export",
    "load",
    "migrate",
    "open_checkpoint",
    "save",
    "swap_weights",
]
