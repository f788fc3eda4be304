"""TensorFlow checkpoints for ckptmgr, without TensorFlow; found through the entry point ``tf_bundle``."""

from ckptmgr_tf_bundle.backend import TFBundleBackend

__all__ = ["TFBundleBackend"]
