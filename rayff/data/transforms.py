"""The built-in augmentations: crop, flip, translate and cutout, each image by itself.

Every image has one 64-bit random number for each of them, a function of (seed, step, position in
the batch, place in the list). On the CPU the numbers become lines: what each row and each column
of each image shows. The lines of a batch are copied to the device at once, where a few kernels
apply them.

Shape legend: B images, K channels, H x W pixels, A augmentations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rayff.config.errors import UserError

Numbers = NDArray[np.uint64]
"""One for each image, (B,)."""
Lines = tuple[NDArray[np.int64], NDArray[np.int64]]
"""A number for each row, (B, H), and each column, (B, W), of each image."""

KEY = 2**32 - 1
"""First part of the key of every augmentation's generator, which no layer has."""


class ImageAugmentation(ABC):
    """A built-in augmentation, which changes each image by itself.

    Args:
        strength: in pixels; None for the default, which is for images of 32x32.
    """

    default: ClassVar[int | None] = None
    """The strength where none is given; None if it has no strength."""

    def __init__(self, strength: int | None = None) -> None:
        self.strength = (self.default or 0) if strength is None else strength

    def largest(self, side: int) -> int:
        """Return the largest strength for images whose shorter side has so many pixels."""
        return side - 1

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise a UserError where the strength is too large for images (K, H, W)."""
        height, width = image_shape[-2:]
        most = self.largest(min(height, width))
        if self.strength > most:
            raise UserError(
                f"--augment {type(self).__name__.lower()}:{self.strength}: images of "
                f"{height}x{width} pixels allow a strength of {most} at most"
            )

    @abstractmethod
    def lines(self, numbers: Numbers, height: int, width: int) -> Lines:
        """Return what the numbers mean for the rows and columns of images (B, K, H, W)."""

    @abstractmethod
    def apply(self, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the images with its lines applied, on the device that has all of them."""


class Move(ImageAugmentation):
    """An augmentation whose lines are what row and column of the image each one shows.

    One that is as large as the side lies outside of the image, and is black.
    """

    def apply(self, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the images with their rows and columns moved."""
        width = images.shape[3]
        framed = F.pad(images, (0, 1, 0, 1)).flatten(2)
        source = torch.add(columns[:, None], rows[:, :, None], alpha=width + 1).flatten(1)
        moved = framed.gather(2, source[:, None].expand(-1, images.shape[1], -1))
        return moved.view(images.shape)


class Crop(Move):
    """Pad each side with `strength` black pixels and cut out a random window of the old size."""

    default = 4

    def lines(self, numbers: Numbers, height: int, width: int) -> Lines:
        """Return the rows and columns of each window."""
        rows, columns = _shifted(numbers, self.strength, height, width)
        return _or_black(rows, height), _or_black(columns, width)


class Translate(Move):
    """Move by up to `strength` pixels each way, and fill the gap with the mirror image.

    As in cifar10-airbench (Jordan, 2024).
    """

    default = 2

    def lines(self, numbers: Numbers, height: int, width: int) -> Lines:
        """Return the rows and columns, reflected at the first and the last one."""
        rows, columns = _shifted(numbers, self.strength, height, width)
        return _reflected(rows, height), _reflected(columns, width)


class Flip(Move):
    """Mirror an image left to right, with probability one half."""

    def lines(self, numbers: Numbers, height: int, width: int) -> Lines:
        """Return the columns, of some images in reverse."""
        rows = np.broadcast_to(np.arange(height), (len(numbers), height))
        columns = np.arange(width)
        mirrored = _below(2, numbers >> _HALF)[:, None] == 1
        return rows, np.where(mirrored, columns[::-1], columns)


class Cutout(ImageAugmentation):
    """Fill a square, with sides of `strength` pixels, with the mean colour of the image.

    Its centre is anywhere in the image, so that it may reach over an edge (DeVries and Taylor,
    2017, where the colour is the mean of the data set).
    """

    default = 8

    def largest(self, side: int) -> int:
        """Return the side."""
        return side

    def lines(self, numbers: Numbers, height: int, width: int) -> Lines:
        """Return 1 for the rows and columns of each square, 0 for the others."""
        return self._cut(numbers >> _HALF, height), self._cut(numbers & _LOW, width)

    def _cut(self, halves: Numbers, size: int) -> NDArray[np.int64]:
        first = _below(size, halves) - self.strength // 2
        position = np.arange(size) - first[:, None]
        return ((position >= 0) & (position < self.strength)).astype(np.int64)

    def apply(self, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the images with their squares filled; the mean is rounded down."""
        pixels = images.shape[2] * images.shape[3]
        sums = images.sum((2, 3), keepdim=True)  # of whole numbers: the same on every device
        mean = sums.div(pixels, rounding_mode="floor").to(torch.uint8)
        inside = torch.logical_and(rows[:, None, :, None], columns[:, None, None])
        return torch.where(inside, mean, images)


_HALF, _LOW = np.uint64(32), np.uint64(2**32 - 1)


def _below(bound: int, halves: Numbers) -> NDArray[np.int64]:
    """Return a whole number from 0 to bound - 1 for each random number of 32 bits."""
    scaled: Numbers = halves * np.uint64(bound) >> _HALF
    return scaled.astype(np.int64)


def _shifted(numbers: Numbers, most: int, height: int, width: int) -> Lines:
    """Return all rows and columns, moved by -most to most."""
    down = _below(2 * most + 1, numbers >> _HALF) - most
    right = _below(2 * most + 1, numbers & _LOW) - most
    return np.arange(height) + down[:, None], np.arange(width) + right[:, None]


def _or_black(lines: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return np.where((lines < 0) | (lines > size), size, lines)


def _reflected(lines: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    lines = np.abs(lines)
    return np.where(lines < size, lines, 2 * (size - 1) - lines)


def _in_turn(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what lines show after two moves; both are (B, size)."""
    size = first.shape[1]
    with_black = np.pad(first, ((0, 0), (0, 1)), constant_values=size)
    shown: NDArray[np.int64] = np.take_along_axis(with_black, second, axis=1)
    return shown


def random_numbers(
    seed: int, step: int, places: int, *, first: int, images: int
) -> NDArray[np.uint64]:
    """Return the random numbers of consecutive images of a batch, (images, places).

    Args:
        seed: of the run.
        step: number of the batch over the whole run.
        places: augmentations in the list.
        first: position in the batch of the first image.
        images: how many.
    """
    bits = np.random.PCG64DXSM(np.random.SeedSequence(seed, spawn_key=(KEY, step)))
    bits.advance(first * places)
    return bits.random_raw(images * places).reshape(images, places)


def transform(
    images: Tensor, augmentations: Sequence[ImageAugmentation], numbers: NDArray[np.uint64]
) -> Tensor:
    """Return augmented images; moves that follow one another are one.

    Args:
        images: uint8, (B, K, H, W).
        augmentations: applied in this order.
        numbers: (B, A).
    """
    if not augmentations or not len(images):
        return images
    height, width = images.shape[2:]
    planned: list[tuple[ImageAugmentation, Lines]] = []
    for augmentation, column in zip(augmentations, numbers.T, strict=True):
        lines = augmentation.lines(column, height, width)
        if isinstance(augmentation, Move) and planned and isinstance(planned[-1][0], Move):
            rows, columns = planned.pop()[1]
            lines = _in_turn(rows, lines[0]), _in_turn(columns, lines[1])
        planned.append((augmentation, lines))
    packed = torch.from_numpy(np.stack([np.concatenate(both, axis=1) for _, both in planned]))
    if images.device.type == "cuda":
        packed = packed.pin_memory()
    sent = packed.to(images.device, non_blocking=True)
    for (augmentation, _), lines in zip(planned, sent, strict=True):
        images = augmentation.apply(images, *lines.split([height, width], dim=1))
    return images
