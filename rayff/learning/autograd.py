"""The local step in plain autograd: `--rule plain`, and the reference for all faster steps."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rayff.learning.layer import CWConv
from rayff.learning.losses import local_loss

Backward = Callable[[], Tensor]
"""Leaves the gradient of the loss in the layer's parameters; returns the loss, detached."""

LayerStep = Callable[[CWConv, Tensor, Tensor, int, Tensor | None], tuple[Tensor, Backward]]
"""One local step of one layer: takes the layer, its input (B, K, H, W), labels (B,), the number of
images of the whole batch and the state of its dropout; returns the features for the next layer and
`Backward`."""


def autograd_step(
    layer: CWConv, x: Tensor, labels: Tensor, batch_size: int, dropout_state: Tensor | None = None
) -> tuple[Tensor, Backward]:
    """Compute one layer's features and loss (DeeperForward, equations 5 to 8).

    The loss is averaged over the whole batch; a share has the part of its own images, so that
    losses and gradients of shares add up to those of the batch. The gradient reaches this layer's
    parameters alone.

    Args:
        layer: the layer that learns.
        x: its input, (B, K, H, W).
        labels: classes, (B,).
        batch_size: images of the whole batch.
        dropout_state: of the layer's dropout, on the device; None for no dropout.

    Returns:
        the features for the next layer, detached, and the backward pass of the loss.
    """
    h = layer.activation(x, dropout_state)
    _, losses = local_loss(layer.loss, h, labels, layer.num_classes)
    assert losses is not None, "labels give losses"
    loss = losses.sum() / batch_size

    def backward() -> Tensor:
        layer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    return layer.features(h), backward
