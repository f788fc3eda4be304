"""PyTorch's files for ckptmgr, without torch: ``torch`` for `torch.save`'s, ``torch_dcp`` for distributed checkpoints.

- Reading: `machine` runs a pickle over the inert `values` that `allowed` names; `archives`, `states`, `source`, `opening`.
- Writing: `pickling`, `writing`. Both: `carriage`, `filesets`.
"""

from ckptmgr_torch.backend import TorchBackend
from ckptmgr_torch.dcp import TorchDCPBackend

__all__ = ["TorchBackend", "TorchDCPBackend"]
