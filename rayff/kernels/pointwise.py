"""The pointwise pass of a layer with mean goodness: everything between convolution and gradient.

With y = conv(x), h = dropout(relu(y)) and n elements in a channel group,

    (1) goodness g[b, c] = mean of h over group c
    (2) features = (h - mean) / sqrt(variance + epsilon), by group
    (3) dloss / dy = (softmax(g) - onehot)[b, c] / (batch * n) * scale where h > 0, else 0

An image's groups are complete when its own pixels are, so one visit to memory does it all: in C++
on a CPU, in Triton on a GPU, and in torch for any other device and format.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rayff.kernels import gpu, native
from rayff.kernels.dropout_bits import drawn_bytes
from rayff.kernels.gpu import EPSILON


@dataclass(frozen=True)
class PointwiseResult:
    """What the pointwise pass computes from the output of a convolution."""

    features: Tensor
    """Normalised activation for the next layer, (B, K, H, W)."""
    goodness: Tensor
    """Logits, (B, C)."""
    gradient: Tensor | None = None
    """Of the loss at y, (B, K, H, W); None without labels."""
    losses: Tensor | None = None
    """Cross entropy of each image, (B,); None without labels."""


def pointwise(
    y: Tensor,
    num_classes: int,
    dropout_state: Tensor | None = None,
    dropped: int = 0,
    labels: Tensor | None = None,
    batch_size: int = 1,
) -> PointwiseResult:
    """Compute (1) and (2), and with labels also dropout and (3).

    Args:
        y: output of the convolution, (B, K, H, W), channels last; the gradient may take its place.
        num_classes: C.
        dropout_state: of the layer's dropout, on the device; None for no dropout.
        dropped: an element is dropped where its byte is below.
        labels: (B,); None in evaluation.
        batch_size: images of the whole batch, over which the loss is averaged.
    """
    if gpu.usable(y):
        found = gpu.pointwise(y, num_classes, dropout_state, dropped, labels, batch_size)
        return PointwiseResult(*found)
    images = y.permute(0, 2, 3, 1).contiguous()
    compute = _native if native.usable(images) else _torch
    features, goodness, gradient, losses = compute(
        images, num_classes, dropout_state, dropped, labels, batch_size
    )
    if gradient is not None:
        gradient = gradient.permute(0, 3, 1, 2)
    return PointwiseResult(features.permute(0, 3, 1, 2), goodness, gradient, losses)


Found = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
"""Features and gradient as (B, H, W, K), goodness (B, C) and losses (B,)."""


def _native(
    y: Tensor,
    num_classes: int,
    dropout_state: Tensor | None,
    dropped: int,
    labels: Tensor | None,
    batch_size: int,
) -> Found:
    images, height, width, channels = y.shape
    features, goodness = torch.empty_like(y), torch.empty(images, num_classes)
    gradient = losses = None
    if labels is not None:  # the gradient takes y's place, as fresh memory would cost more
        gradient, losses = y, torch.empty(images)
    native.call(
        f"pointwise_{str(y.dtype).removeprefix('torch.')}",
        *(y, dropout_state, dropped, labels, images, height * width, channels, num_classes),
        *(1.0 / batch_size, EPSILON, features, gradient, goodness, losses),
    )
    return features, goodness, gradient, losses


def _torch(
    y: Tensor,
    num_classes: int,
    dropout_state: Tensor | None,
    dropped: int,
    labels: Tensor | None,
    batch_size: int,
) -> Found:
    images, height, width, channels = y.shape
    h = F.relu(y.to(torch.promote_types(y.dtype, torch.float32)))
    scale = 1.0
    if dropout_state is not None:
        scale = 256 / (256 - dropped)
        shape = torch.Size((images, channels, height, width))
        h = h * (drawn_bytes(dropout_state, shape) >= dropped)
    # (B, pixels, C, channels of a group)
    groups = h.view(images, height * width, num_classes, channels // num_classes)
    variance, mean = torch.var_mean(groups, dim=(1, 3), correction=0, keepdim=True)
    goodness = mean[:, 0, :, 0] * scale
    # the scale of dropout is the same for all elements, so it may come last
    slope = scale * torch.rsqrt(variance * scale**2 + EPSILON)
    features = ((groups - mean) * slope).view_as(y).to(y.dtype)
    if labels is None:
        return features, goodness, None, None
    losses = F.cross_entropy(goodness, labels, reduction="none")
    elements = height * width * channels // num_classes
    error = goodness.softmax(dim=1) - F.one_hot(labels, num_classes)
    coefficient = error * (scale / (batch_size * elements))
    gradient = (groups > 0) * coefficient[:, None, :, None]
    return features, goodness, gradient.view_as(y).to(y.dtype), losses
