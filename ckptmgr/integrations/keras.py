"""Checkpoints of Keras models, for Keras 3 on every backend and for tf_keras, in any of ckptmgr's formats.

::

    manager = CheckpointManager("run", retention=KeepLast(3))
    model.fit(x, y, epochs=10, shuffle=False, callbacks=[ResumeCallback(manager, save_freq=100)])
    model = load_model(manager)
"""

from ckptmgr.integrations.keras_callbacks import CheckpointCallback
from ckptmgr.integrations.keras_models import load_model, restore_weights, save_model
from ckptmgr.integrations.keras_resume import Position, ResumeCallback, resume_position

__all__ = [
    "CheckpointCallback",
    "Position",
    "ResumeCallback",
    "load_model",
    "restore_weights",
    "resume_position",
    "save_model",
]
