"""Mean goodness on channel groups (DeeperForward, equations 5 to 8)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rayff.models.architecture import LayerSpec


class Goodness(nn.Module):
    """The logit of class c is the mean of channel group c; the loss is their cross entropy.

    The analytic step computes the same in closed form, with kernels of its own.

    Args:
        spec: the layer, whose output channels split into groups.
        num_classes: C, the number of groups.
    """

    def __init__(self, spec: LayerSpec, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, h: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return logits (B, C) and, with labels (B,), the loss of each image (B,)."""
        logits = h.reshape(len(h), self.num_classes, -1).mean(dim=2)
        losses = None if labels is None else F.cross_entropy(logits, labels, reduction="none")
        return logits, losses
