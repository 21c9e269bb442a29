"""Random streams: every layer has its own, found from numbers alone.

A stream is a function of (run seed, layer number, step), never of what was drawn before, so
no cut, chunk, window or resumption can move it.
"""

from __future__ import annotations

import numpy as np
import torch

_WEIGHTS, _DROPOUT = 0, 1


def _seed(seed: int, *key: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


def weight_generator(seed: int, layer_index: int) -> torch.Generator:
    """Return the generator of a layer's first weights, on the CPU for every device."""
    return torch.Generator().manual_seed(_seed(seed, layer_index, _WEIGHTS))


def keep_mask(
    like: torch.Tensor, dropped: int, seed: int, layer_index: int, step: int
) -> torch.Tensor:
    """Return which elements dropout keeps, a bool tensor of the shape of `like`.

    One bulk draw of 64-bit words gives eight elements a word: an element is dropped where its
    byte is below `dropped`, so with probability dropped / 256 exactly.
    """
    generator = torch.Generator(like.device)
    generator.manual_seed(_seed(seed, layer_index, _DROPOUT, step))
    words = torch.empty((like.numel() + 7) // 8, dtype=torch.int64, device=like.device)
    words.random_(torch.iinfo(torch.int64).min, None, generator=generator)
    return (words.view(torch.uint8)[: like.numel()] >= dropped).view(like.shape)
