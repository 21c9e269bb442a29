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

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rayff.learning import native
from rayff.learning.convolution import Convolution
from rayff.learning.layer import CWConv
from rayff.learning.streams import DropoutStream, Share

EPSILON = 1e-5
"""Of group norm, torch's default."""


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


class FastStep:
    """One layer's step with one batch, phase by phase.

    Args:
        layer: the layer.
        x: features that enter, (B, K', H, W).
    """

    def __init__(self, layer: CWConv, x: Tensor) -> None:
        self.layer = layer
        x = x.detach().to(layer.dtype, memory_format=torch.channels_last)
        if layer.spec.pool:
            x = F.avg_pool2d(x, 2)
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
        drawn: Tensor | DropoutStream | None = None,
    ) -> Pointwise:
        """Carry out (2) and (3), and with labels also dropout and (4).

        Args:
            labels: (B,); None where nothing is to be learned.
            share: which images of which batch they are.
            drawn: the share's dropout bytes, if they are drawn already.
        """
        layer, y = self.layer, self.y
        if labels is None or share is None:
            self.found = pointwise(y, layer.num_classes)
            return self.found
        if layer.dropped and drawn is None:
            drawn = layer.dropout_stream(share)
        self.found = pointwise(
            y, layer.num_classes, drawn, layer.dropped, labels, share.batch_size
        )
        return self.found

    def weight_gradient(self) -> None:
        """Leave the gradient in the layer's weight: (5)."""
        assert self.found.gradient is not None, "labels give a gradient"
        weight = self.layer.weight
        weight.grad = self.convolution.weight_gradient(self.found.gradient).to(weight.dtype)


def fast_rule(
    layer: CWConv, x: Tensor, labels: Tensor, share: Share, drawn: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Do what `plain_rule` does, with the same result up to rounding.

    `drawn` are the share's dropout bytes, (B, H, W, K), if they are drawn already.
    """
    step = FastStep(layer, x)
    step.forward()
    found = step.pointwise(labels, share, drawn)
    step.weight_gradient()
    assert found.losses is not None, "labels give losses"
    return found.features, found.losses.sum() / share.batch_size


def fast_forward(layer: CWConv, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return features (B, K, H, W) and goodness (B, C), without dropout, as the layer does."""
    step = FastStep(layer, x)
    step.forward()
    found = step.pointwise()
    return found.features, found.goodness


def pointwise(
    y: Tensor,
    num_classes: int,
    drawn: Tensor | DropoutStream | None = None,
    dropped: int = 0,
    labels: Tensor | None = None,
    batch_size: int = 1,
) -> Pointwise:
    """Carry out steps (2) to (4).

    Args:
        y: output of the convolution, (B, K, H, W), channels last. It is given up: the gradient
            may take its place.
        num_classes: C.
        drawn: a random byte for each element, (B, H, W, K), or where they come from; None for no
            dropout.
        dropped: an element is dropped where its byte is below.
        labels: (B,); None where nothing is to be learned.
        batch_size: images of the whole batch, over which the loss is averaged.
    """
    images = y.permute(0, 2, 3, 1).contiguous()
    if native.usable(images):
        return _native_pointwise(images, num_classes, drawn, dropped, labels, batch_size)
    if isinstance(drawn, DropoutStream):
        drawn = drawn.bytes(y.shape, y.device)
    if y.device.type == "cuda":
        return Pointwise(
            *_compiled_pointwise()(images, num_classes, drawn, dropped, labels, batch_size)
        )
    return Pointwise(*_torch_pointwise(images, num_classes, drawn, dropped, labels, batch_size))


def _native_pointwise(
    y: Tensor,
    num_classes: int,
    drawn: Tensor | DropoutStream | None,
    dropped: int,
    labels: Tensor | None,
    batch_size: int,
) -> Pointwise:
    images, height, width, channels = y.shape
    features, goodness = torch.empty_like(y), torch.empty(images, num_classes)
    stream = None
    if isinstance(drawn, DropoutStream):
        stream, drawn = drawn.state(channels * height * width), None
    gradient = losses = None
    if labels is not None:  # the gradient takes y's place, as a fresh tensor would cost more
        gradient, losses = y, torch.empty(images)
    native.call(
        f"pointwise_{str(y.dtype).removeprefix('torch.')}",
        *(y, drawn, stream, dropped, labels, images, height * width, channels, num_classes),
        *(1.0 / batch_size, EPSILON, features, gradient, goodness, losses),
    )
    return Pointwise(
        features.permute(0, 3, 1, 2),
        goodness,
        None if gradient is None else gradient.permute(0, 3, 1, 2),
        losses,
    )


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
    features = ((groups - mean) * slope).view_as(y).to(y.dtype).permute(0, 3, 1, 2)
    if labels is None:
        return features, goodness, None, None
    losses = F.cross_entropy(goodness, labels, reduction="none")
    wanted = F.one_hot(labels, num_classes)
    elements = height * width * channels // num_classes
    coefficient = (goodness.softmax(dim=1) - wanted) * (scale / (batch_size * elements))
    gradient = (groups > 0) * coefficient[:, None, :, None]
    return features, goodness, gradient.view_as(y).to(y.dtype).permute(0, 3, 1, 2), losses


@functools.cache
def _compiled_pointwise() -> Callable[..., tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
    """Return the same as one Triton kernel a shape, compiled when it is first called."""
    return torch.compile(_torch_pointwise, dynamic=False)
