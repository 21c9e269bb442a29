"""The local rule, in plain autograd: the oracle for every faster one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from rayff.learning.layer import CWConv


def local_step(
    layer: CWConv, optimizer: Optimizer, x: Tensor, labels: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """Let one layer learn from one batch (DeeperForward, equations 5 to 8).

    The loss is the cross entropy of the layer's own goodness; its gradient reaches this layer's
    weights alone. The features are those of the weights before the step.

    Args:
        layer: the layer that learns.
        optimizer: its own optimizer.
        x: features that enter, (B, K, H, W).
        labels: classes, (B,).
        step: number of the batch over the whole run; it finds the layer's dropout.

    Returns:
        the features for the next layer and the loss, both detached.
    """
    h = layer.activation(x, step)
    loss = F.cross_entropy(layer.goodness(h), labels)
    features = layer.features(h)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return features, loss.detach()
