"""``python -m ckptmgr.cli``: the same as the command ``ckptmgr``."""

from ckptmgr.cli import main

main()
