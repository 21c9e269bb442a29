"""Networks with local losses, trained layer by layer as pipelines of Ray actors.

    >>> from rayff import Trainer, TrainConfig, load_model
    >>> result = Trainer(TrainConfig(arch="tinycnn", task="digits")).fit()
    >>> model = load_model(result.run_dir)          # a plain nn.Module

Importing the package imports neither Ray nor torch.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from rayff.config.errors import RunError, UserError
from rayff.config.train_config import TrainConfig
from rayff.config.version import VERSION
from rayff.trainer import Trainer

if TYPE_CHECKING:
    from rayff.learning.classifier import Classifier

__all__ = ["RunError", "TrainConfig", "Trainer", "UserError", "load_model"]

__version__ = VERSION


def load_model(run_dir: str | PathLike[str]) -> Classifier:
    """Return the trained network of a run, an nn.Module on the CPU in eval mode.

    It takes uint8 images (B, K, H, W) of the run's size and returns logits (B, C) of its readout:
    by default those of the window of layers that was chosen on the validation images, summed.
    `model.probabilities(images)` returns probabilities, (B, C), and `model.readout = "fusion"`
    chooses another readout. `model.logits(images)` are those of each layer, (L, B, C), and
    `model.features(images, layer=2)` what a layer hands on; forward hooks of `model.layers` fire.

    Raises:
        UserError: no run directory, no model in it yet, or a damaged one.
    """
    from rayff.runs.model_file import read_model

    return read_model(Path(run_dir))
