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


@dataclass(frozen=True, kw_only=True)
class DropoutStream:
    """The random bytes of one layer's dropout with a share of a batch.

    Element e of the whole batch's features (B, H, W, K) has byte e % 8 of the stream's word
    e // 8, so that a share has the same bytes that its images have in the undivided batch.
    """

    seed: int
    """Of the run."""
    layer_index: int
    share: Share

    @property
    def _key(self) -> tuple[int, ...]:
        return self.layer_index, _DROPOUT, self.share.step

    def words(self) -> np.random.PCG64DXSM:
        """Return what gives the words one by one, on a CPU: it can jump to any of them."""
        return np.random.PCG64DXSM(np.random.SeedSequence(self.seed, spawn_key=self._key))

    def state(self, each: int) -> torch.Tensor:
        """Return the generator as the kernels take it, uint64: state, increment, first element.

        Args:
            each: elements of an image.
        """
        numbers = self.words().state["state"]
        halves = (*divmod(numbers["state"], 2**64), *divmod(numbers["inc"], 2**64))
        return torch.from_numpy(np.array([*halves, self.share.first * each], dtype=np.uint64))

    def bytes(self, shape: torch.Size, device: torch.device) -> torch.Tensor:
        """Return the byte of each element of features (B, K, H, W), as uint8 (B, H, W, K).

        A GPU has a stream of its own, drawn over the whole batch.
        """
        images, channels, height, width = shape
        each = channels * height * width
        first, end = self.share.first * each, (self.share.first + images) * each
        start = 0
        if device.type == "cpu":
            start = first // 8
            words = np.random.Generator(self.words().advance(start)).integers(
                2**64 - 1, size=(end + 7) // 8 - start, dtype=np.uint64, endpoint=True
            )
            drawn = torch.from_numpy(words.view(np.uint8))
        else:
            generator = torch.Generator(device).manual_seed(_seed(self.seed, *self._key))
            count = (self.share.batch_size * each + 7) // 8
            whole = torch.empty(count, dtype=torch.int64, device=device)
            whole.random_(torch.iinfo(torch.int64).min, None, generator=generator)
            drawn = whole.view(torch.uint8)
        return drawn[first - 8 * start : end - 8 * start].view(images, height, width, channels)

    def keep_mask(self, like: torch.Tensor, dropped: int) -> torch.Tensor:
        """Return which elements dropout keeps, a bool tensor of the shape of `like` (B, K, H, W).

        An element is dropped where its byte is below `dropped`, so with probability dropped / 256.
        """
        return (self.bytes(like.shape, like.device) >= dropped).permute(0, 3, 1, 2)
