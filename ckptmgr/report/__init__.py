"""One page about a run that needs nothing but a browser: what is kept and why, metrics, storage, tensors, and what changed.

The law: the page says what the records say, and where they say nothing it says so.
"""

from ckptmgr.report.writing import write_report

__all__ = ["write_report"]
