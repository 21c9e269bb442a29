"""Augmentations: of a user's own, and the built-in ones, one image at a time in numpy.

`--augment tests.helpers.augmentations:NAME` selects the user's own.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DARKEN = "tests.helpers.augmentations:darken"
NARROW = "tests.helpers.augmentations:narrow"
OF_SIXTEEN = "tests.helpers.augmentations:of_sixteen"


def darken(images: Tensor, generator: torch.Generator) -> Tensor:
    """Multiply each image by a factor of its own."""
    factors = torch.randint(64, 257, (len(images), 1, 1, 1), generator=generator)
    return (images.int() * factors.to(images.device) // 256).to(torch.uint8)


def narrow(images: Tensor, generator: torch.Generator) -> Tensor:
    """Lose the last column, which no augmentation may."""
    return images[..., :-1]


def of_sixteen(images: Tensor, generator: torch.Generator) -> Tensor:
    """Add a number of its own to each of 16 images; other batches have no such shape."""
    return images + torch.randint(9, (16, 1, 1, 1), generator=generator).to(torch.uint8)


Image = NDArray[np.uint8]
"""(K, H, W)."""
Images = NDArray[np.uint8]
"""(B, K, H, W)."""


def halves(number: int) -> tuple[int, int]:
    """Return the high and the low 32 bits of a random number."""
    return divmod(number, 2**32)


def below(bound: int, half: int) -> int:
    return half * bound // 2**32


def crop(image: Image, number: int, padding: int) -> Image:
    height, width = image.shape[1:]
    top, left = (below(2 * padding + 1, half) for half in halves(number))
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    return padded[:, top : top + height, left : left + width]


def translate(image: Image, number: int, most: int) -> Image:
    height, width = image.shape[1:]
    top, left = (below(2 * most + 1, half) for half in halves(number))
    padded = np.pad(image, ((0, 0), (most, most), (most, most)), mode="reflect")
    return padded[:, top : top + height, left : left + width]


def flip(image: Image, number: int, _: int) -> Image:
    return image[:, :, ::-1] if number >= 2**63 else image


def cutout(image: Image, number: int, side: int) -> Image:
    height, width = image.shape[1:]
    row, column = below(height, halves(number)[0]), below(width, halves(number)[1])
    found = image.copy()
    for y in range(row - side // 2, row - side // 2 + side):
        for x in range(column - side // 2, column - side // 2 + side):
            if 0 <= y < height and 0 <= x < width:
                found[:, y, x] = [int(channel.sum()) // channel.size for channel in image]
    return found


REFERENCES: dict[str, Callable[[Image, int, int], Image]] = {
    function.__name__: function for function in (crop, flip, cutout, translate)
}


def by_image(images: Images, names: str, seed: int, step: int) -> Images:
    """Return a batch, augmented image by image; `names` have their strengths."""
    listed = names.split(",")
    bits = np.random.PCG64DXSM(np.random.SeedSequence(seed, spawn_key=(2**32 - 1, step)))
    augmented = []
    for image in images:
        for entry in listed:
            name, _, strength = entry.partition(":")
            image = REFERENCES[name](image, bits.random_raw(), int(strength or 0))
        augmented.append(image)
    return np.stack(augmented)
