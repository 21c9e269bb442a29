"""Augmentation of training batches on the device that holds the images.

Two kinds share a list, as in `--augment crop:4,flip,my_package.aug:f`:

* a built-in one changes each image by a random number of its own, so that a replica augments its
  share of a batch alone; see rayff.data.transforms;
* the user's own is a callable `(images, generator)`: uint8 images (B, K, H, W) and a CPU generator
  whose seed is a function of (run seed, step, place in the list). It always sees whole batches.

So no boundary, chunk, replica or resumption changes what an image becomes.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rayff.config.errors import UserError
from rayff.config.registries import AUGMENTATIONS
from rayff.config.registry import is_import_path
from rayff.data.transforms import KEY, ImageAugmentation, random_numbers, transform

OwnAugmentation = Callable[[Tensor, torch.Generator], Tensor]
Augmentation = ImageAugmentation | OwnAugmentation

_STRENGTH = re.compile("0*[1-9][0-9]{0,8}")
_TRIED_IMAGES = 16
_TRIALS = 8


def parse_augmentations(names: str) -> tuple[Augmentation, ...]:
    """Return the augmentations of `--augment`, such as "crop:4,flip,my_package.aug:f".

    Raises:
        UserError: one of them is unknown, is no function, or has a strength that it cannot have.
    """
    if names == "none":
        return ()
    return tuple(_parse(name.strip()) for name in names.split(","))


def _parse(name: str) -> Augmentation:
    head, colon, strength = name.partition(":")
    if head in AUGMENTATIONS:
        return _registered(head, strength if colon else None)
    path, _, _ = name.rpartition(":")
    if is_import_path(path):
        raise UserError(
            f"--augment {name}: a function of your own takes no strength; write it into the "
            f"function, and name {path}"
        )
    found: OwnAugmentation = AUGMENTATIONS.load(name if is_import_path(name) else head)
    if not callable(found):
        raise UserError(f"--augment {name} is not callable: name a function")
    return found


def _registered(name: str, strength: str | None) -> Augmentation:
    found = AUGMENTATIONS.load(name)
    kind: type[ImageAugmentation] | None = found if isinstance(found, type) else None
    if strength is None:
        augmentation: Augmentation = found if kind is None else kind()
        return augmentation
    if kind is None or kind.default is None:
        raise UserError(f"--augment {name}:{strength}: {name} takes no strength; name it alone")
    if not _STRENGTH.fullmatch(strength):
        raise UserError(
            f"--augment {name}:{strength}: the strength must be a whole number of pixels, from 1 "
            f"to the size of the images, such as {name}:{kind.default}"
        )
    return kind(int(strength))


def sees_whole_batches(augmentations: Sequence[Augmentation]) -> bool:
    """Return whether one of them is the user's own, and so must see a batch as a whole."""
    return not all(isinstance(each, ImageAugmentation) for each in augmentations)


def augment(
    images: Tensor,
    augmentations: Sequence[Augmentation],
    *,
    seed: int,
    step: int,
    first: int = 0,
) -> Tensor:
    """Return augmented images.

    Args:
        images: uint8, (B, K, H, W): a batch, or consecutive ones of it where no augmentation sees
            whole batches.
        augmentations: applied in this order.
        seed: of the run.
        step: number of the batch over the whole run.
        first: position in the batch of the first image.

    Raises:
        UserError: one of the user's own fails, or changes shape, type or device of the images.
    """
    count = len(augmentations)
    numbers = random_numbers(seed, step, count, first=first, images=len(images))
    waiting: dict[int, ImageAugmentation] = {}
    for place, augmentation in enumerate(augmentations):
        if isinstance(augmentation, ImageAugmentation):
            waiting[place] = augmentation
            continue
        images = transform(images, list(waiting.values()), numbers[:, list(waiting)])
        waiting = {}
        images = _call(augmentation, images, _generator(seed, step, place))
    return transform(images, list(waiting.values()), numbers[:, list(waiting)])


def _generator(seed: int, step: int, place: int) -> torch.Generator:
    sequence = np.random.SeedSequence(seed, spawn_key=(KEY, step, place))
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def _call(function: OwnAugmentation, images: Tensor, generator: torch.Generator) -> Tensor:
    """Return what the user's own returns, once it is what it should be."""
    given = f"{tuple(images.shape)} uint8"
    try:
        result = function(images, generator)
    except torch.AcceleratorError:  # a failure of the device
        raise
    except Exception as error:  # the user's code may raise anything
        lines = traceback.extract_tb(error.__traceback__)[1:2]
        place = "".join(f" ({line.filename}, line {line.lineno})" for line in lines)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"--augment: {_name(function)} fails on images {given}: {reason}{place}"
        ) from error
    if not isinstance(result, Tensor):
        raise UserError(
            f"--augment: {_name(function)} returned {type(result).__name__} for images {given}: "
            "return a tensor of the same shape and type"
        )
    if result.shape != images.shape or result.dtype != torch.uint8:
        raise UserError(
            f"--augment: {_name(function)} returned {tuple(result.shape)} {result.dtype} for "
            f"images {given}: return images of the same shape and type"
        )
    if result.device != images.device:
        raise UserError(
            f"--augment: {_name(function)} returned images on {result.device} for images on "
            f"{images.device}: leave them on their device"
        )
    return result


def _name(function: OwnAugmentation) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def try_augmentations(names: str, image_shape: tuple[int, ...]) -> None:
    """Augment a few random images of a run's shape (K, H, W), each augmentation several times.

    Raises:
        UserError: whatever `parse_augmentations` and `augment` refuse, a strength that is too
            large for the images, or random numbers that do not come from the generator.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (_TRIED_IMAGES, *image_shape), np.uint8)
    for augmentation in parse_augmentations(names):
        if isinstance(augmentation, ImageAugmentation):
            augmentation.check(image_shape)
            continue
        with torch.random.fork_rng(devices=[]):
            once, *again = (
                augment(torch.tensor(pixels), [augmentation], seed=0, step=0)
                for _ in range(_TRIALS)
            )
        if not all(torch.equal(once, each) for each in again):
            raise UserError(
                f"--augment: {_name(augmentation)} returned other images when it was called again "
                "with the same generator: draw random numbers from the generator alone, or no "
                "resumption gives the same bits"
            )
