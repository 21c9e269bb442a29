"""The paper's training recipes, one an architecture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Method = Literal["ff", "bp", "bp-deepsup"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network learns; every layer has its own optimizer with these settings."""

    epochs: int = 150
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float = 0.08
    """Learning rate of the first epoch; a cosine leads to `lr_min`, stepped once an epoch."""
    lr_min: float = 0.008
    weight_decay: float = 5e-4
    dropout: float = 0.2


PAPER = Recipe()
"""DeeperForward, section 4: what all its networks share, with the resnet's weight decay."""

_OWN: dict[str, dict[str, Any]] = {
    "tinycnn": {"weight_decay": 0.01},
    "vgg": {"optimizer": "adam", "weight_decay": 0.0},
}


BACKPROPAGATION: Mapping[str, Any] = {"lr": 1e-3, "lr_min": 1e-4}
"""What backpropagation has of its own: Forward-Forward's learning rates make it diverge."""


def recipe(arch: str, overrides: Mapping[str, Any]) -> Recipe:
    """Return the paper's recipe for `arch`, changed where `overrides` says otherwise."""
    return dataclasses.replace(PAPER, **{**_OWN.get(arch, {}), **overrides})
