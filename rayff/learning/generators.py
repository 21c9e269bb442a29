"""Random streams: every layer has its own, found from numbers alone.

A stream is a function of (run seed, layer number, step), never of what was drawn before, so
no cut, chunk, window or resumption can move it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayff.kernels import gpu

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


@dataclass(frozen=True, kw_only=True)
class DropoutGenerator:
    """The random bytes of one layer's dropout with a share of a batch.

    A share has the same bytes that its images have in the undivided batch. On a CPU element e of
    the whole batch's features (B, H, W, K) has byte e % 8 of word e // 8, of numpy's PCG64DXSM. On
    a GPU, where each element must find its own, channel k of pixel p, counted over the batch, has
    byte k % 16 of block p * ceil(K / 16) + k // 16, of Philox4x32-10 (Salmon et al., 2011).
    """

    seed: int
    """Of the run."""
    layer_index: int
    share: Share

    def state(self, each: int, device: torch.device) -> Tensor:
        """Return all that a device's kernels need, int64, in the host's memory.

        For a CPU: the generator's state and increment, high and low half of each, and the first
        element. For a GPU: the layer's key, the step and the first image.

        Args:
            each: elements of an image.
            device: where the bytes are drawn.
        """
        share = self.share
        if device.type != "cpu":
            key = np.uint64(_seed(self.seed, self.layer_index, _DROPOUT)).view(np.int64)
            return torch.tensor([int(key), share.step, share.first])
        key = np.random.SeedSequence(self.seed, spawn_key=(self.layer_index, _DROPOUT, share.step))
        numbers = np.random.PCG64DXSM(key).state["state"]
        halves = (*divmod(numbers["state"], 2**64), *divmod(numbers["inc"], 2**64))
        state = np.array([*halves, share.first * each], dtype=np.uint64)
        return torch.from_numpy(state.view(np.int64))

    def keep_mask(self, like: Tensor, dropped: int) -> Tensor:
        """Return which elements dropout keeps, a bool tensor of the shape of `like` (B, K, H, W).

        An element is dropped where its byte is below `dropped`, so with probability dropped / 256.
        """
        state = self.state(like[:1].numel(), like.device).to(like.device)
        return (drawn_bytes(state, like.shape) >= dropped).permute(0, 3, 1, 2)


def drawn_bytes(state: Tensor, shape: torch.Size) -> Tensor:
    """Return the byte of each element of features (B, K, H, W), as uint8 (B, H, W, K).

    Args:
        state: of the layer's DropoutGenerator for this device, on it.
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
    """Return the bytes of a GPU's stream, anywhere; see `drawn_bytes`."""
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
