"""The local rule, in plain autograd: the oracle for every faster one."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from rayff.learning.generators import Share
from rayff.learning.layer import CWConv
from rayff.learning.optimizers import LayerOptimizer

Rule = Callable[[CWConv, Tensor, Tensor, Share], tuple[Tensor, Tensor]]
"""Takes a layer, the features that enter and their labels to the features for the next layer and
the loss, and leaves the loss's gradient in the layer's weight."""


def plain_rule(layer: CWConv, x: Tensor, labels: Tensor, share: Share) -> tuple[Tensor, Tensor]:
    """Let one layer find what it can learn from a batch (DeeperForward, equations 5 to 8).

    The loss is the cross entropy of the layer's own goodness, averaged over the whole batch; of
    a share only the part of its own images, so that losses and gradients of shares add up to
    those of the batch. The gradient reaches this layer's weights alone.

    Args:
        layer: the layer that learns.
        x: features that enter, (B, K, H, W).
        labels: classes, (B,).
        share: which images of which batch they are; it finds the layer's dropout.

    Returns:
        the features for the next layer and the loss, both detached.
    """
    h = layer.activation(x, share)
    loss = F.cross_entropy(layer.goodness(h), labels, reduction="sum") / share.batch_size
    layer.weight.grad = None
    loss.backward()  # type: ignore[no-untyped-call]
    return layer.features(h), loss.detach()


def local_step(
    rule: Rule, layer: CWConv, optimizer: LayerOptimizer, x: Tensor, labels: Tensor, step: int
) -> tuple[Tensor, Tensor]:
    """Let one layer learn from a whole batch; features are those of the weights before it."""
    result = rule(layer, x, labels, Share(step=step, batch_size=len(labels)))
    optimizer.step()
    return result
