"""Recipes: how a network learns, by training method, local loss and architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rayff.config.errors import UserError
from rayff.config.text import plural
from rayff.config.validation import as_option

Method = Literal["ff", "bp", "bp-deepsup"]
LrSchedule = Literal["cosine", "constant", "step"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network learns; every layer has its own optimizer with these settings."""

    epochs: int = 150
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float = 0.08
    """Highest learning rate: of the first epoch after the warm-up."""
    lr_schedule: LrSchedule = "cosine"
    lr_min: float | None = 0.008
    """Where the cosine leads to, stepped once an epoch; None with another schedule."""
    lr_steps: tuple[float, ...] | None = None
    """Shares of the epochs, at each of which `lr_decay` multiplies the learning rate; None with
    another schedule than step."""
    lr_decay: float | None = None
    """None with another schedule than step."""
    warmup_epochs: int = 0
    """Epochs in which the learning rate grows in even steps, one a batch, to the schedule's."""
    lr_scale: float = 1.0
    """Learning rate of the last layer as a multiple of the first one's."""
    weight_decay: float = 5e-4
    dropout: float = 0.2
    clip_norm: float | None = None
    """Largest norm of a layer's gradient; None: any."""


SCHEDULE_OPTIONS: Mapping[LrSchedule, tuple[str, ...]] = {
    "cosine": ("lr_min",),
    "constant": (),
    "step": ("lr_steps", "lr_decay"),
}
"""What only one schedule uses."""

OF_DATA = ("epochs", "batch_size")
"""What a data set's own recipe decides for every loss; the rest was found with the paper's."""


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Default values of a recipe, where they differ from those of `Recipe`."""

    every: Mapping[str, Any] = field(default_factory=dict)
    """For every architecture."""
    by_arch: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """For one of them."""

    def of(self, arch: str) -> dict[str, Any]:
        """Return the values for an architecture."""
        return {**self.every, **self.by_arch.get(arch, {})}


PAPER = Defaults(
    by_arch={
        "tinycnn": {"weight_decay": 0.01},
        "vgg": {"optimizer": "adam", "weight_decay": 0.0},
    }
)
"""DeeperForward (Sun et al., ICLR 2025), section 4."""

HEADS = Defaults(
    every={"lr": 2e-3, "lr_min": 1e-5, "weight_decay": 0.0},
    by_arch={"tinycnn": {"lr": 3e-3}},
)
"""Losses with a head of their own: found with `linear` on CIFAR-10."""

LOCAL_LOSSES: Mapping[str, Defaults] = {
    "goodness": PAPER,
    "squared_goodness": PAPER,
    "channel_matrix": Defaults(every={"lr": 1e-2, "lr_min": 1e-5, "weight_decay": 0.0}),
    "linear": HEADS,
    "linear_similarity": HEADS,
    "predsim": Defaults(  # Nøkland and Eidnes (2019), the CIFAR-10 runs of their code
        every={
            **{"epochs": 400, "optimizer": "adam", "weight_decay": 0.0, "dropout": 0.2},
            **{"lr": 5e-4, "lr_min": 1e-5, "lr_schedule": "step"},
        }
    ),
}
"""By local loss; a user's own has those of HEADS."""

BACKPROPAGATION = Defaults(every={"lr": 1e-3, "lr_min": 1e-4}, by_arch=PAPER.by_arch)
"""The paper's learning rates for local losses make backpropagation diverge."""

_STEPS = {"lr_steps": (0.5, 0.75, 0.89, 0.94), "lr_decay": 0.25}
"""Those of Nøkland and Eidnes (2019)."""


def defaults_of(method: Method, loss: str) -> Defaults:
    """Return the defaults of a method and its local loss."""
    return LOCAL_LOSSES.get(loss, HEADS) if method == "ff" else BACKPROPAGATION


def make_recipe(
    defaults: Defaults, arch: str, task: Mapping[str, Any], given: Mapping[str, Any]
) -> Recipe:
    """Return the defaults for `arch`, with the values of the task and then of the user over them.

    What the schedule has no use for is None.

    Args:
        defaults: of the method and loss.
        arch: name or import path of the architecture.
        task: the data set's own values; but for OF_DATA they belong to the paper's recipe.
        given: the user's own values.

    Raises:
        UserError: the user's values contradict each other or the recipe.
    """
    of_task = {n: value for n, value in task.items() if defaults is PAPER or n in OF_DATA}
    values: dict[str, Any] = {**_STEPS, **defaults.of(arch), **of_task, **given}
    schedule = values.get("lr_schedule", Recipe.lr_schedule)
    for owner, names in SCHEDULE_OPTIONS.items():
        for name in names if owner != schedule else ():
            if name in given:
                raise UserError(
                    f"{as_option(name, given[name])} is for --lr-schedule {owner}, and the run's "
                    f"is {schedule}: leave it out, or use --lr-schedule {owner}"
                )
            values[name] = None
    if schedule == "cosine" and "lr_min" not in given:  # a lower --lr is then a constant one
        lr_min = values.get("lr_min", Recipe.lr_min)
        values["lr_min"] = min(lr_min, values.get("lr", Recipe.lr))
    recipe = Recipe(**values)
    _check(recipe)
    return recipe


def _check(recipe: Recipe) -> None:
    if recipe.lr_min is not None and recipe.lr_min > recipe.lr:
        raise UserError(
            f"--lr-min {recipe.lr_min} is above the --lr {recipe.lr} that the cosine begins with: "
            "use a lower --lr-min, or a higher --lr"
        )
    if recipe.warmup_epochs > recipe.epochs:
        raise UserError(
            f"--warmup-epochs {recipe.warmup_epochs} is longer than the run of "
            f"{plural(recipe.epochs, 'epoch')}: use fewer, or more --epochs"
        )
