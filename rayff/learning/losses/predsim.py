"""The loss "predsim", with heads on the map itself.

Source: Nøkland and Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayff.config.local_loss import LossConfig
from rayff.learning.losses.local_loss import LocalLoss, as_map
from rayff.learning.losses.similarity import similarity_losses
from rayff.models.architecture import Spec

Sides = tuple[int, int]


class Predsim(LocalLoss):
    """(1 - w) cross entropy of a linear head + w times the error of the similarity of images.

    The linear head, whose weights begin at zero, sees the average-pooled map. The similarity is
    that of the channels' standard deviations behind a 3x3 convolution; for single features, and
    for each token, a linear layer takes its place. w is `--similarity-weight`, 0.99 by default.
    """

    couples_images = True

    def __init__(self, spec: Spec, num_classes: int, config: LossConfig) -> None:
        super().__init__(spec, num_classes, config)
        channels = spec.out_channels
        height, width = spec.out_shape[1:] if len(spec.out_shape) == 3 else (1, 1)
        self.window = pooling_window(channels, (height, width), config.head_dim)
        rows, columns = pooled_sides((height, width), self.window)
        self.head = nn.Linear(channels * rows * columns, num_classes)
        nn.init.zeros_(self.head.weight)
        self.similarity: nn.Module = (
            nn.Conv2d(channels, channels, 3, padding=1, bias=False)
            if len(spec.out_shape) == 3
            else nn.Linear(channels, channels, bias=False)
        )

    def forward(self, h: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return logits (B, C) and, with labels (B,), the loss of each image (B,)."""
        logits = self.head(self._pooled(h))
        if labels is None:
            return logits, None
        weight = self.config.similarity_weight
        weight = 0.99 if weight is None else weight
        similarity = similarity_losses(self._spread(h), labels, self.num_classes)
        return logits, (1 - weight) * self.cross_entropy(logits, labels) + weight * similarity

    def _pooled(self, h: Tensor) -> Tensor:
        """Return the inputs of the linear head, (B, N)."""
        if h.dim() < 4:  # of tokens the mean
            return as_map(h).mean(dim=(2, 3))
        sides = h.shape[2], h.shape[3]
        return F.avg_pool2d(h, self.window, padding=_padding(sides, self.window)).flatten(1)

    def _spread(self, h: Tensor) -> Tensor:
        """Return the standard deviation of each channel, (B, K), of what the other head gives."""
        with torch.autocast(
            h.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16
        ):
            found = as_map(self.similarity(h))
        found = found.to(h.dtype)
        return found.flatten(1) if found[0, 0].numel() == 1 else found.std(dim=(2, 3))


def pooling_window(channels: int, sides: Sides, head_dim: int) -> Sides:
    """Return the sides of the window of an average pool that leaves `head_dim` numbers at most.

    They are doubled in turns, the height first, until the map is small enough or one pixel high.
    """
    height, width = 1, 1

    def too_large() -> bool:
        return channels * math.prod(pooled_sides(sides, (height, width))) > head_dim

    while too_large() and height < sides[0]:
        height *= 2
        if too_large():
            width *= 2
    return height, width


def pooled_sides(sides: Sides, window: Sides) -> Sides:
    """Return the sides of a map behind the pool."""
    return -(-sides[0] // window[0]), -(-sides[1] // window[1])


def _padding(sides: Sides, window: Sides) -> Sides:
    """Return the zeros around a map whose sides are no multiples of the window's."""
    after = pooled_sides(sides, window)
    rows, columns = (
        window[axis] * (after[axis] - sides[axis] // window[axis]) // 2 for axis in (0, 1)
    )
    return rows, columns
