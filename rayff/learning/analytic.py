"""The local step without autograd: for mean goodness the gradient is known in closed form.

(1) y = conv(x)
(2) features, goodness and dloss / dy from y, in one pass: see rayff.kernels.pointwise
(3) the gradient of the weights from x and dloss / dy
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rayff.kernels import gpu
from rayff.kernels.convolution import Convolution
from rayff.kernels.pointwise import PointwiseResult, pointwise
from rayff.learning.autograd import Backward
from rayff.learning.layer import CWConv


class AnalyticStep:
    """One layer's step with one batch, phase by phase.

    Args:
        layer: the layer.
        x: its input, (B, K', H, W).
    """

    def __init__(self, layer: CWConv, x: Tensor) -> None:
        self.layer = layer
        x = x.detach().to(layer.dtype)
        if gpu.usable(x):
            x = gpu.pool(x) if layer.spec.pool else gpu.as_pitched(x)
        else:
            x = x.contiguous(memory_format=torch.channels_last)
            x = F.avg_pool2d(x, 2) if layer.spec.pool else x
        weight = layer.weight.detach().to(layer.dtype)
        self.convolution = Convolution(layer.spec, layer.kernels, x, weight)

    def forward(self) -> Tensor:
        """Return y, (B, K, H, W): (1)."""
        return self.convolution.forward()

    def pointwise(
        self,
        y: Tensor,
        labels: Tensor | None = None,
        batch_size: int = 1,
        dropout_state: Tensor | None = None,
    ) -> PointwiseResult:
        """Compute (2), without dropout and gradient where there are no labels.

        Args:
            y: output of the convolution; the gradient may take its place.
            labels: (B,); None in evaluation.
            batch_size: images of the whole batch.
            dropout_state: of the layer's dropout, on the device.
        """
        layer = self.layer
        if labels is None:
            return pointwise(y, layer.num_classes)
        return pointwise(y, layer.num_classes, dropout_state, layer.dropped, labels, batch_size)

    def weight_gradient(self, gradient: Tensor) -> None:
        """Leave the gradient in the layer's weight: (3)."""
        weight = self.layer.weight
        found = self.convolution.weight_gradient(gradient).to(weight.dtype)
        if found.stride() != weight.stride():  # the fused optimizers need one order of memory
            found = torch.empty_like(weight).copy_(found)
        weight.grad = found


def analytic_step(
    layer: CWConv, x: Tensor, labels: Tensor, batch_size: int, dropout_state: Tensor | None = None
) -> tuple[Tensor, Backward]:
    """Compute what `autograd_step` computes, up to rounding."""
    step = AnalyticStep(layer, x)
    result = step.pointwise(step.forward(), labels, batch_size, dropout_state)
    gradient, losses = result.gradient, result.losses
    assert gradient is not None, "labels give a gradient"
    assert losses is not None, "labels give losses"

    def backward() -> Tensor:
        step.weight_gradient(gradient)
        return losses.sum() / batch_size

    return result.features, backward


def analytic_forward(layer: CWConv, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (B, K, H, W) and logits (B, C), without dropout, as the layer does."""
    step = AnalyticStep(layer, x)
    result = step.pointwise(step.forward())
    return result.features, result.goodness
