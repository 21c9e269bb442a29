"""The local loss of a run with its options."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rayff.config.errors import UserError
from rayff.config.registries import LOSSES

if TYPE_CHECKING:
    from rayff.config.train_config import TrainConfig

Tier = Literal["pooled", "map"]

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "goodness": (),
    "squared_goodness": (),
    "channel_matrix": ("temperature",),
    "linear": ("head_dim",),
    "linear_similarity": ("head_dim", "similarity_weight"),
    "predsim": ("head_dim", "similarity_weight"),
}
"""Options that each built-in loss reads, besides those of every cross entropy."""

_MAP_LOSSES = ("predsim",)
"""Built-in losses that see the map itself."""

OWN_LOSS_OPTIONS = ("head_dim", "similarity_weight", "temperature")
"""Options that only some losses read."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The local loss of every layer; its constructor gets this object."""

    name: str = "goodness"
    """Registered name, or package.module:Class."""
    head_dim: int = 2048
    """Inputs of a linear head, at most, where the pooled map has more than one cell."""
    similarity_weight: float | None = None
    """Share of the similarity term in the loss, 0 to 1. None: the loss's own."""
    label_smoothing: float = 0.0
    """Probability that the targets spread over all classes."""
    temperature: float | None = None
    """Initial temperature of a softmax over weights. None: the loss's own."""
    class_weights: tuple[float, ...] | None = None
    """Weight of each class in the cross entropy, (C,); None for equal weights."""

    @classmethod
    def from_dict(cls, data: Any) -> LossConfig:
        """Read what `dataclasses.asdict` returned.

        Raises:
            ValueError: a value is missing, unknown, or of another type.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(data, dict) or data.keys() != known:
            raise ValueError(f"a loss has {', '.join(sorted(known))}, not {data!r}"[:200])
        numbers = [data["similarity_weight"], data["temperature"], data["label_smoothing"]]
        if (
            not isinstance(data["name"], str)
            or type(data["head_dim"]) is not int
            or data["head_dim"] < 1
            or not all(value is None or isinstance(value, float) for value in numbers)
            or data["label_smoothing"] is None
            or data["class_weights"] is not None
        ):
            raise ValueError(f"its loss has a value of another type: {data!r}"[:200])
        return cls(**data)


GOODNESS = LossConfig()
"""The paper's loss."""


def loss_config(config: TrainConfig, class_weights: tuple[float, ...] | None = None) -> LossConfig:
    """Return the local loss that a user's config asks for.

    Args:
        config: the user's.
        class_weights: of the training images, for `--class-weights balanced`.
    """
    given = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(LossConfig)
        if field.name not in ("name", "class_weights") and getattr(config, field.name) is not None
    }
    return LossConfig(name=config.loss, class_weights=class_weights, **given)


def loss_tier(name: str) -> Tier:
    """Return which activation a loss sees: its pooled moments, or the map itself.

    Raises:
        UserError: an unknown name, or an import path that leads nowhere.
    """
    if name in _OPTIONS:
        return "map" if name in _MAP_LOSSES else "pooled"
    return "pooled" if getattr(LOSSES.load(name), "tier", None) == "pooled" else "map"


def check_loss_options(config: TrainConfig) -> None:
    """Raise a UserError for an option that is wrong, or that the loss does not read."""
    ranges = {
        "head_dim": (1, None, "a whole number of 1 or more"),
        "similarity_weight": (0, 1, "a number from 0 to 1"),
        "label_smoothing": (0, 0.999, "a number from 0 to 0.999"),
        "temperature": (1e-3, None, "a number of 0.001 or more"),
    }
    for name, (low, high, what) in ranges.items():
        value = getattr(config, name)
        if value is not None and not low <= value <= (1e6 if high is None else high):
            raise UserError(f"--{name.replace('_', '-')} must be {what}, not {value}")
    if config.loss not in _OPTIONS:
        return
    read = _OPTIONS[config.loss]
    for name in OWN_LOSS_OPTIONS:
        if getattr(config, name) is not None and name not in read:
            users = ", ".join(loss for loss, options in _OPTIONS.items() if name in options)
            raise UserError(
                f"--{name.replace('_', '-')} is not read by --loss {config.loss}: leave it out, "
                f"or use --loss {users}"
            )
