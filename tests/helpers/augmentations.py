"""Augmentations of a user's own, as `--augment tests.helpers.augmentations:NAME` selects them."""

import torch
from torch import Tensor

DARKEN = "tests.helpers.augmentations:darken"


def darken(images: Tensor, generator: torch.Generator) -> Tensor:
    """Multiply each image by a factor of its own."""
    factors = torch.randint(64, 257, (len(images), 1, 1, 1), generator=generator)
    return (images.int() * factors.to(images.device) // 256).to(torch.uint8)
