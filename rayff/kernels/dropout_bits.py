"""Random bytes of dropout: a function of a small state, never of what was drawn before.

On a CPU element e of the whole batch's features (B, H, W, K) has byte e % 8 of word e // 8 of
numpy's PCG64DXSM. On a GPU, where each element must find its own, channel k of pixel p, counted
over the batch, has byte k % 16 of block p * ceil(K / 16) + k // 16 of Philox4x32-10 (Salmon et
al., 2011).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rayff.kernels import gpu


def drawn_bytes(state: Tensor, shape: torch.Size) -> Tensor:
    """Return the byte of each element of features (B, K, H, W), as uint8 (B, H, W, K).

    Args:
        state: from rayff.learning.generators.dropout_state, on the device.
        shape: of the features.
    """
    if state.device.type == "cpu":
        images, channels, height, width = shape
        return _pcg_bytes(state, shape.numel()).view(images, height, width, channels)
    if gpu.missing() is None:
        return gpu.drawn_bytes(state, shape)
    return philox_bytes(state, shape)


def _pcg_bytes(state: Tensor, count: int) -> Tensor:
    high, low, high_inc, low_inc, first = state.numpy().view(np.uint64).tolist()
    generator = np.random.PCG64DXSM()
    whole = generator.state
    whole["state"] = {"state": high << 64 | low, "inc": high_inc << 64 | low_inc}
    generator.state = whole
    words = generator.advance(first // 8).random_raw((first % 8 + count + 7) // 8)
    return torch.from_numpy(words.view(np.uint8))[first % 8 :][:count]


def philox_bytes(state: Tensor, shape: torch.Size) -> Tensor:
    """Return the bytes of a GPU on any device, in torch; see `drawn_bytes`."""
    images, channels, height, width = shape
    blocks = -(-channels // 16)
    each = height * width * blocks
    count = torch.arange(images * each, device=state.device) + state[2] * each
    step = state[1].expand_as(count)
    drawn = philox(state[0], (count & _WORD, count >> 32, step & _WORD, step >> 32))
    drawn = drawn.view(images, height, width, 16 * blocks)[..., :channels]
    return drawn.contiguous()


_WORD = 2**32 - 1


def philox(key: Tensor, counters: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Return the blocks of Philox4x32-10 for some counters, uint8 (N, 16).

    Args:
        key: 64 bits as int64.
        counters: the words of each counter, from the lowest, as int64 (N,).
    """
    keys = [key & _WORD, key >> 32 & _WORD]
    a, b, c, d = counters
    for _ in range(10):
        # int64 products wrap around, which leaves both halves as they are
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, c = (right >> 32 & _WORD) ^ b ^ keys[0], (left >> 32 & _WORD) ^ d ^ keys[1]
        b, d = right & _WORD, left & _WORD
        keys = [(keys[0] + 0x9E3779B9) & _WORD, (keys[1] + 0xBB67AE85) & _WORD]
    words = torch.stack((a, b, c, d), dim=1)
    return torch.stack([words >> shift & 255 for shift in (0, 8, 16, 24)], dim=2).byte().flatten(1)
