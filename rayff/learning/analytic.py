"""The local rule without a tape: the gradient is known in closed form.

With h = dropout(relu(y)), y = conv(x), and n elements in a group,

    (1) y = conv(x)
    (2) goodness g[b, c] = mean of h over group c, which group norm computes anyway
    (3) features = (h - mean) / sqrt(variance + epsilon), by group
    (4) dloss / dy = (softmax(g) - onehot)[b, c] / (batch * n) * scale where h > 0, else 0
    (5) the gradient of the weights from x and (4)

(2) to (4) are one visit to memory: an image's groups are complete when its own pixels are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rayff.kernels import gpu, native
from rayff.kernels.convolution import Convolution
from rayff.kernels.gpu import EPSILON
from rayff.learning.generators import Share, drawn_bytes
from rayff.learning.layer import CWConv


@dataclass(frozen=True)
class Pointwise:
    """What steps (2) to (4) find."""

    features: Tensor
    """(B, K, H, W)."""
    goodness: Tensor
    """(B, C)."""
    gradient: Tensor | None = None
    """Of the loss at y, (B, K, H, W)."""
    losses: Tensor | None = None
    """(B,)."""

    def loss(self, share: Share) -> Tensor:
        """Return the share's part of the loss of the whole batch."""
        assert self.losses is not None, "labels give losses"
        return self.losses.sum() / share.batch_size


class FastStep:
    """One layer's step with one batch, phase by phase.

    Args:
        layer: the layer.
        x: features that enter, (B, K', H, W).
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
        """Return y, (B, K, H, W), which the pointwise phase gives up: (1)."""
        self.y = self.convolution.forward()
        return self.y

    def pointwise(
        self,
        labels: Tensor | None = None,
        share: Share | None = None,
        stream: Tensor | None = None,
    ) -> Pointwise:
        """Carry out (2) and (3), and with labels also dropout and (4).

        Args:
            labels: (B,); None where nothing is to be learned.
            share: which images of which batch they are.
            stream: state of the share's dropout stream, where it is on the device already.
        """
        layer, y = self.layer, self.y
        if labels is None or share is None:
            self.found = pointwise(y, layer.num_classes)
            return self.found
        if layer.dropped and stream is None:
            stream = layer.dropout_state(share, y.device).to(y.device)
        self.found = pointwise(
            y, layer.num_classes, stream, layer.dropped, labels, share.batch_size
        )
        return self.found

    def weight_gradient(self) -> None:
        """Leave the gradient in the layer's weight: (5)."""
        assert self.found.gradient is not None, "labels give a gradient"
        weight = self.layer.weight
        gradient = self.convolution.weight_gradient(self.found.gradient).to(weight.dtype)
        if gradient.stride() != weight.stride():  # the optimizer's kernels want one order
            gradient = torch.empty_like(weight).copy_(gradient)
        weight.grad = gradient


def fast_rule(layer: CWConv, x: Tensor, labels: Tensor, share: Share) -> tuple[Tensor, Tensor]:
    """Do what `plain_rule` does, with the same result up to rounding."""
    step = FastStep(layer, x)
    step.forward()
    found = step.pointwise(labels, share)
    step.weight_gradient()
    return found.features, found.loss(share)


def fast_forward(layer: CWConv, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (B, K, H, W) and goodness (B, C), without dropout, as the layer does."""
    step = FastStep(layer, x)
    step.forward()
    found = step.pointwise()
    return found.features, found.goodness


def pointwise(
    y: Tensor,
    num_classes: int,
    stream: Tensor | None = None,
    dropped: int = 0,
    labels: Tensor | None = None,
    batch_size: int = 1,
) -> Pointwise:
    """Carry out steps (2) to (4).

    Args:
        y: output of the convolution, (B, K, H, W), channels last. It is given up: the gradient
            may take its place.
        num_classes: C.
        stream: state of a DropoutGenerator, on the device; None for no dropout.
        dropped: an element is dropped where its byte is below.
        labels: (B,); None where nothing is to be learned.
        batch_size: images of the whole batch, over which the loss is averaged.
    """
    if gpu.usable(y):
        return Pointwise(*gpu.pointwise(y, num_classes, stream, dropped, labels, batch_size))
    images = y.permute(0, 2, 3, 1).contiguous()
    if native.usable(images):
        return _native_pointwise(images, num_classes, stream, dropped, labels, batch_size)
    drawn = None if stream is None else drawn_bytes(stream, y.shape)
    return _found(*_torch_pointwise(images, num_classes, drawn, dropped, labels, batch_size))


def _native_pointwise(
    y: Tensor,
    num_classes: int,
    stream: Tensor | None,
    dropped: int,
    labels: Tensor | None,
    batch_size: int,
) -> Pointwise:
    images, height, width, channels = y.shape
    features, goodness = torch.empty_like(y), torch.empty(images, num_classes)
    gradient = losses = None
    if labels is not None:  # the gradient takes y's place, as a fresh tensor would cost more
        gradient, losses = y, torch.empty(images)
    native.call(
        f"pointwise_{str(y.dtype).removeprefix('torch.')}",
        *(y, stream, dropped, labels, images, height * width, channels, num_classes),
        *(1.0 / batch_size, EPSILON, features, gradient, goodness, losses),
    )
    return _found(features, goodness, gradient, losses)


def _found(
    features: Tensor, goodness: Tensor, gradient: Tensor | None, losses: Tensor | None
) -> Pointwise:
    """Return what was found as (B, H, W, K) as it is to be seen, (B, K, H, W)."""
    if gradient is not None:
        gradient = gradient.permute(0, 3, 1, 2)
    return Pointwise(features.permute(0, 3, 1, 2), goodness, gradient, losses)


def _torch_pointwise(
    y: Tensor,
    num_classes: int,
    drawn: Tensor | None,
    dropped: int,
    labels: Tensor | None,
    batch_size: int,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Do the same in torch, without a compiler and for any device and format."""
    images, height, width, channels = y.shape
    wide = torch.promote_types(y.dtype, torch.float32)
    h = F.relu(y.to(wide))
    scale = 1.0
    if drawn is not None:
        scale = 256 / (256 - dropped)
        h = h * (drawn >= dropped)
    # (B, pixels, C, channels of a group)
    groups = h.view(images, height * width, num_classes, channels // num_classes)
    variance, mean = torch.var_mean(groups, dim=(1, 3), correction=0, keepdim=True)
    goodness = mean[:, 0, :, 0] * scale
    # the scale of dropout is the same for all, so it may come last
    slope = scale * torch.rsqrt(variance * scale**2 + EPSILON)
    features = ((groups - mean) * slope).view_as(y).to(y.dtype)
    if labels is None:
        return features, goodness, None, None
    losses = F.cross_entropy(goodness, labels, reduction="none")
    wanted = F.one_hot(labels, num_classes)
    elements = height * width * channels // num_classes
    coefficient = (goodness.softmax(dim=1) - wanted) * (scale / (batch_size * elements))
    gradient = (groups > 0) * coefficient[:, None, :, None]
    return features, goodness, gradient.view_as(y).to(y.dtype), losses
