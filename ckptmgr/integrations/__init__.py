"""ckptmgr inside the training loops of frameworks. Each module is imported by who uses it, and none by ckptmgr itself."""
