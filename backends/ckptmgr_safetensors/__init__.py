"""The safetensors format for ckptmgr; found through the entry point ``safetensors``."""

from ckptmgr_safetensors.backend import SafetensorsBackend

__all__ = ["SafetensorsBackend"]
