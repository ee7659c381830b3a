"""Train a flow into a run directory, and read it back: the engine below ``invconv train``.

A run directory holds ``config.json``, ``metrics.jsonl`` (a row for each epoch),
``checkpoint.safetensors`` (everything that resuming needs), ``model.safetensors`` (the averaged
weights, for use) and, once finished, ``summary.json`` and three pictures.
"""

from invconv.train._config import PRESETS, Preset, TrainConfig
from invconv.train._evaluate import evaluate, every_class, select_device
from invconv.train._files import RunError, has_checkpoint, load_model, resume_command
from invconv.train._fit import Listener, train
from invconv.train._pictures import interpolate, save_grid, save_interpolations
from invconv.train._run import absolute_source, checksum, create_run, new_config, read_config

__all__ = [
    "PRESETS",
    "Listener",
    "Preset",
    "RunError",
    "TrainConfig",
    "absolute_source",
    "checksum",
    "create_run",
    "evaluate",
    "every_class",
    "has_checkpoint",
    "interpolate",
    "load_model",
    "new_config",
    "read_config",
    "resume_command",
    "save_grid",
    "save_interpolations",
    "select_device",
    "train",
]
