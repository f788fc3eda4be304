"""What is wrong with a run, and what would heal it."""

from ckptmgr.diagnosis.diagnosing import diagnose
from ckptmgr.diagnosis.findings import Diagnosis, Finding, Severity

__all__ = ["Diagnosis", "Finding", "Severity", "diagnose"]
