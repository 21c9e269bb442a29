"""The learning rate of an epoch."""

from __future__ import annotations

import math

from rayff.config.recipe import Recipe


def cosine_lr(recipe: Recipe, epoch: int) -> float:
    """Return the learning rate of an epoch counted from 0: a cosine from lr down to lr_min."""
    cosine = (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
    return recipe.lr_min + (recipe.lr - recipe.lr_min) * cosine
