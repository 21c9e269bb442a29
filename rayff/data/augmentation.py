"""Augmentation of whole training batches on the device that holds the images.

An augmentation is a callable `(images, generator)`: uint8 images (B, K, H, W) and a CPU generator
whose seed is a function of (run seed, step). It is given the whole batch, also where replicas
share it, so that no boundary, replica or resumption changes what an image becomes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rayff.config.errors import UserError
from rayff.config.registries import AUGMENTATIONS

Augmentation = Callable[[Tensor, torch.Generator], Tensor]

_AUGMENT = 2**32 - 1
"""First part of the key of its generators, which no layer has."""


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images, left to right."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(3), images)


def parse_augmentations(names: str) -> tuple[Augmentation, ...]:
    """Return the augmentations of `--augment`, such as "flip,my_package.aug:f".

    Raises:
        UserError: one of them is unknown, or is no function.
    """
    if names == "none":
        return ()
    found = []
    for name in map(str.strip, names.split(",")):
        found.append(AUGMENTATIONS.load(name))
        if not callable(found[-1]):
            raise UserError(f"--augment {name} is not callable: name a function")
    return tuple(found)


def augment(
    images: Tensor, augmentations: Sequence[Augmentation], *, seed: int, step: int
) -> Tensor:
    """Return the images of a whole batch, augmented.

    Raises:
        UserError: an augmentation changes shape or type of the images.
    """
    for position, function in enumerate(augmentations):
        sequence = np.random.SeedSequence(seed, spawn_key=(_AUGMENT, step, position))
        state = int(sequence.generate_state(1, np.uint64)[0])
        result = function(images, torch.Generator().manual_seed(state))
        if result.shape != images.shape or result.dtype != torch.uint8:
            raise UserError(
                f"--augment: {getattr(function, '__name__', function)} returned "
                f"{tuple(result.shape)} {result.dtype} for images {tuple(images.shape)} uint8: "
                "return images of the same shape and type"
            )
        images = result
    return images
