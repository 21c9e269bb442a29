"""Random streams: every layer has its own, found from numbers alone.

A stream is a function of (run seed, layer number, step), never of what was drawn before, so
no cut, chunk, window or resumption can move it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

_WEIGHTS, _DROPOUT, _HEAD = 0, 1, 2


def _seed(seed: int, *key: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


def weight_generator(seed: int, layer_index: int) -> torch.Generator:
    """Return the generator of a layer's first weights, on the CPU for every device."""
    return torch.Generator().manual_seed(_seed(seed, layer_index, _WEIGHTS))


def head_generator(seed: int, layer_index: int) -> torch.Generator:
    """Return the generator of the first weights of a layer's linear head, where it has one."""
    return torch.Generator().manual_seed(_seed(seed, layer_index, _HEAD))


@dataclass(frozen=True, kw_only=True)
class Share:
    """The images of a batch that one replica of a stage sees: all of them where it has none."""

    step: int
    """Number of the batch over the whole run."""
    batch_size: int
    """Images of the whole batch."""
    first: int = 0
    """Position of the share's first image in the batch."""


def dropout_bytes(
    shape: torch.Size, device: torch.device, seed: int, layer_index: int, share: Share
) -> torch.Tensor:
    """Return a random byte for each element of features (B, K, H, W), as uint8 (B, H, W, K).

    One bulk draw of 64-bit words gives eight elements a word, over the whole batch, so that a
    share has the same bytes that its images have in the undivided batch.
    """
    generator = torch.Generator(device)
    generator.manual_seed(_seed(seed, layer_index, _DROPOUT, share.step))
    images, channels, height, width = shape
    each = channels * height * width
    words = torch.empty((share.batch_size * each + 7) // 8, dtype=torch.int64, device=device)
    words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    own = words.view(torch.uint8)[share.first * each : (share.first + images) * each]
    return own.view(images, height, width, channels)


def keep_mask(
    like: torch.Tensor, dropped: int, seed: int, layer_index: int, share: Share
) -> torch.Tensor:
    """Return which elements dropout keeps, a bool tensor of the shape of `like` (B, K, H, W).

    An element is dropped where its byte is below `dropped`, so with probability dropped / 256.
    """
    drawn = dropout_bytes(like.shape, like.device, seed, layer_index, share)
    return (drawn >= dropped).permute(0, 3, 1, 2)
