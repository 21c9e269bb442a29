"""A learned assignment of channels to classes (after CAW-Conv, 2026)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayff.config.local_loss import LossConfig
from rayff.learning.losses.local_loss import Moments, PooledLoss
from rayff.models.architecture import Spec


class ChannelMatrix(PooledLoss):
    """Logits are the channels' means times softmax(W / T), whose columns share out a channel.

    W is (C, K) and the softmax goes over the classes, so each channel speaks for some of them;
    both W and the temperature T are learned.
    """

    def __init__(self, spec: Spec, num_classes: int, config: LossConfig) -> None:
        super().__init__(spec, num_classes, config)
        self.weight = nn.Parameter(torch.randn(num_classes, spec.out_channels))
        start = torch.tensor(config.temperature or 1.0)
        self.log_temperature = nn.Parameter(start.log())

    def forward(
        self, moments: Moments, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return logits (B, C) and, with labels (B,), the loss of each image (B,)."""
        shares = (self.weight / self.log_temperature.exp()).softmax(dim=0)
        logits = moments.mean.flatten(1) @ shares.T
        return logits, None if labels is None else self.cross_entropy(logits, labels)
