"""The local step without a tape: the gradient at the map follows from that at its moments.

(1) y = conv(x)
(2) features, loss and dloss / dy from y: for mean goodness in one pass, see
    rayff.kernels.pointwise; for other pooled losses around the loss itself, see
    rayff.kernels.pooled
(3) the gradient of the weights from x and dloss / dy
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rayff.kernels import gpu
from rayff.kernels.convolution import Convolution
from rayff.kernels.pointwise import PointwiseResult, pointwise
from rayff.kernels.pooled import Pooled, pool
from rayff.kernels.pooled import gradient as pooled_gradient
from rayff.learning.autograd import Backward, gradient_of
from rayff.learning.layer import CWConv
from rayff.learning.local_layer import LocalLayer
from rayff.learning.losses import Moments, PooledLoss, local_loss, scores
from rayff.learning.losses.goodness import Goodness


class AnalyticStep:
    """One layer's step with one batch, phase by phase.

    Args:
        layer: the layer.
        x: its input, (B, K', H, W).
    """

    def __init__(self, layer: LocalLayer, x: Tensor) -> None:
        assert isinstance(layer, CWConv), "the fast rule trains convolutions"
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

    def pool(self, dropout_state: Tensor | None = None) -> Pooled:
        """Compute (1), and the moments and features that (2) begins with.

        Args:
            dropout_state: of the layer's dropout, on the device; None for no dropout.
        """
        layer, loss = self.layer, self.layer.loss
        assert isinstance(loss, PooledLoss), "the fast rule trains pooled losses"
        return pool(
            *(self.forward(), layer.groups, loss.cells),
            squares=loss.squares,
            dropout_state=dropout_state,
            dropped=layer.dropped,
        )

    def weight_gradient(self, gradient: Tensor) -> None:
        """Leave the gradient in the layer's weight: (3)."""
        weight = self.layer.weight
        found = self.convolution.weight_gradient(gradient).to(weight.dtype)
        if found.stride() != weight.stride():  # the fused optimizers need one order of memory
            found = torch.empty_like(weight).copy_(found)
        weight.grad = found


def analytic_step(
    layer: LocalLayer,
    x: Tensor,
    labels: Tensor,
    batch_size: int,
    dropout_state: Tensor | None = None,
) -> tuple[Tensor, Backward]:
    """Compute what `autograd_step` computes, up to rounding."""
    step = AnalyticStep(layer, x)
    if not in_closed_form(layer):
        return pooled_step(step, labels, batch_size, dropout_state)
    result = step.pointwise(step.forward(), labels, batch_size, dropout_state)
    gradient, losses = result.gradient, result.losses
    assert gradient is not None, "labels give a gradient"
    assert losses is not None, "labels give losses"

    def backward() -> Tensor:
        if not layer.frozen:
            step.weight_gradient(gradient)
        return losses.sum() / batch_size

    return result.features, backward


def pooled_step(
    step: AnalyticStep, labels: Tensor, batch_size: int, dropout_state: Tensor | None
) -> tuple[Tensor, Backward]:
    """Compute the step of any pooled loss: autograd sees the moments alone."""
    layer = step.layer
    pooled = step.pool(dropout_state)
    moments = [m for m in (pooled.mean, pooled.square) if m is not None]

    def loss_of(leaves: list[Tensor]) -> Tensor:
        _, losses = local_loss(layer.loss, Moments(*leaves), labels, layer.num_classes)
        assert losses is not None, "labels give losses"
        return losses.sum() / batch_size

    def backward() -> Tensor:
        if layer.frozen:
            with torch.no_grad():
                return loss_of(moments)
        leaves = [m.requires_grad_() for m in moments]
        layer.loss.zero_grad()
        with torch.enable_grad():
            loss = loss_of(leaves)
            loss.backward()  # type: ignore[no-untyped-call]
        for parameter in layer.loss.parameters():
            if parameter.requires_grad:
                parameter.grad = gradient_of(parameter)
        step.weight_gradient(pooled_gradient(pooled, *map(gradient_of, leaves)))
        return loss.detach()

    return pooled.features, backward


def analytic_forward(layer: LocalLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (B, K, H, W) and scores (B, C), without dropout, as the layer does."""
    step = AnalyticStep(layer, x)
    if type(layer.loss) is Goodness:
        result = step.pointwise(step.forward())
        return result.features, result.goodness
    pooled = step.pool()
    seen = Moments(pooled.mean, pooled.square)
    logits, _ = local_loss(layer.loss, seen, None, layer.num_classes)
    return pooled.features, scores(layer.loss, logits)


def in_closed_form(layer: LocalLayer) -> bool:
    """Whether one fused kernel computes the layer's loss and its gradient."""
    return type(layer.loss) is Goodness and layer.loss.in_closed_form
