"""What a pickle may cost in memory: so many times its own bytes, and a fixed amount for each record that lies beside it.

The law: every container and object that the pickle makes, or that stands for one in a skeleton, is paid for before the next
one is made. What a file names twice is paid for twice, because a state of it has two.
"""

import sys
from dataclasses import dataclass, field

from ckptmgr_torch.origin import Damaged

FREE_NBYTES = 32 << 20
_TIMES = (
    24  # a list of pairs of numbers takes 22, with its skeleton; an optimizer's state of many tensors 20, most of it for these
)
_OF_TENSOR = 2048  # bytes of memory for each record: a tensor with its name and keys takes 1300


@dataclass(slots=True)
class Budget:
    """Bytes of memory that are left to a pickle of ``nbytes``, beside which there are so many ``tensors`` at most.

    ``free`` are those that even the smallest one may take. ``made`` is what was spent so far.
    """

    nbytes: int
    tensors: int
    free: int = FREE_NBYTES
    left: int = field(init=False)
    made: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.left = self.free + _TIMES * self.nbytes + _OF_TENSOR * self.tensors

    def spend(self, nbytes: int) -> None:
        """Counts bytes that are about to be taken, or just were. Raises Damaged."""
        self.left -= nbytes
        self.made += nbytes
        if self.left < 0:
            text = f"it takes more memory than a pickle of {self.nbytes} bytes should: keep long lists of small values as tensors"
            raise Damaged(text)


def size(value: object) -> int:
    """Bytes that a container or object takes, without those of its items."""
    return (sys.getsizeof(value) + 15) & -16
