"""The local step in plain autograd: `--rule plain`, and the reference for all faster steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rayff.learning.local_layer import LocalLayer

Backward = Callable[[], Tensor]
"""Leaves the gradient of the loss in the layer's parameters, unless the layer is frozen; returns
the loss, detached."""

LayerStep = Callable[[LocalLayer, Tensor, Tensor, int, Tensor | None], tuple[Tensor, Backward]]
"""One local step of one layer: takes the layer, its input (B, ...), labels (B,), the number of
images of the whole batch and the state of its dropout; returns the features for the next layer and
`Backward`."""


def autograd_step(
    layer: LocalLayer,
    x: Tensor,
    labels: Tensor,
    batch_size: int,
    dropout_state: Tensor | None = None,
) -> tuple[Tensor, Backward]:
    """Compute one layer's features and loss (DeeperForward, equations 5 to 8).

    The loss is averaged over the whole batch; a share has the part of its own images, so that
    losses and gradients of shares add up to those of the batch. The gradient reaches this layer's
    parameters alone.

    Args:
        layer: the layer that learns.
        x: its input, (B, K, H, W) or of another shape that it takes.
        labels: classes, (B,).
        batch_size: images of the whole batch.
        dropout_state: of the layer's dropout, on the device; None for no dropout.

    Returns:
        the features for the next layer, detached, and the backward pass of the loss.
    """
    with torch.set_grad_enabled(not layer.frozen):
        h, features = layer.outputs(x, dropout_state)
        _, losses = layer.losses(h, labels)
    assert losses is not None, "labels give losses"
    loss: Tensor = losses.sum() / batch_size

    def backward() -> Tensor:
        if layer.frozen:
            return loss
        layer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.grad = gradient_of(parameter)
        return loss.detach()

    return features, backward


def gradient_of(leaf: Tensor) -> Tensor:
    """Return the gradient of a leaf; zeros where the loss does not read it."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
