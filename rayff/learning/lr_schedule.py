"""The learning rate of a batch and of a layer, as pure functions: no chunk or cut moves it."""

from __future__ import annotations

import math

from rayff.config.recipe import Recipe


def cosine_lr(recipe: Recipe, epoch: int) -> float:
    """Return the learning rate of an epoch counted from 0: a cosine from lr down to lr_min."""
    assert recipe.lr_min is not None, "the recipe of a cosine has it"
    cosine = (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
    return recipe.lr_min + (recipe.lr - recipe.lr_min) * cosine


def step_lr(recipe: Recipe, epoch: int) -> float:
    """Return the learning rate of an epoch counted from 0: lr times lr_decay for each step taken.

    A step is taken in the first epoch before which at least its share of the epochs is over.
    """
    assert recipe.lr_decay is not None, "the recipe of steps has it"
    taken = sum(epoch / recipe.epochs >= step for step in recipe.lr_steps or ())
    return float(recipe.lr * recipe.lr_decay**taken)


def epoch_lr(recipe: Recipe, epoch: int) -> float:
    """Return the schedule's learning rate of an epoch counted from 0."""
    if recipe.lr_schedule == "constant":
        return recipe.lr
    return (cosine_lr if recipe.lr_schedule == "cosine" else step_lr)(recipe, epoch)


def batch_lr(recipe: Recipe, epoch: int, batch: int, batches_per_epoch: int) -> float:
    """Return the learning rate of a batch of an epoch, both counted from 0.

    Of N batches of warm-up, batch number n from 1 has n / N of the schedule's learning rate.
    """
    lr = epoch_lr(recipe, epoch)
    number, warmup = (
        epoch * batches_per_epoch + batch + 1,
        recipe.warmup_epochs * batches_per_epoch,
    )
    return lr * number / warmup if number < warmup else lr


def layer_factor(lr_scale: float, index: int, num_layers: int) -> float:
    """Return a layer's learning rate as a multiple of the first layer's.

    Args:
        lr_scale: the last layer's; the factors between are spaced geometrically.
        index: number of the layer, from 0.
        num_layers: of the whole network.
    """
    return float(lr_scale ** (index / max(1, num_layers - 1)))
