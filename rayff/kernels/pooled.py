"""The kernels of pooled losses: moments and features of an activation, and the gradient at y.

With y = conv(x), h = dropout(relu(y)), P x P cells of n pixels and groups of channels,

    (1) mean[b, k, cell] = mean of h over the cell, square[b, k, cell] = mean of h squared
    (2) features = (h - mean) / sqrt(variance + epsilon), by group
    (3) dloss / dy = (dloss / dmean + 2 h dloss / dsquare) / n * scale where h > 0, else 0

The loss, any differentiable function of the moments, comes between (1) and (3). All is done in C++
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
class Pooled:
    """The moments of an activation, and what (3) needs."""

    y: Tensor
    """Output of the convolution with zeros where dropout took an element, (B, K, H, W)."""
    features: Tensor
    """Normalised activation for the next layer, (B, K, H, W)."""
    mean: Tensor
    """(B, K, P, P), float32."""
    square: Tensor | None
    """(B, K, P, P), float32; None where it is not wanted."""
    scale: float
    """By which dropout enlarges what it keeps."""


def pool(
    y: Tensor,
    groups: int,
    cells: int,
    *,
    squares: bool = False,
    dropout_state: Tensor | None = None,
    dropped: int = 0,
) -> Pooled:
    """Compute (1) and (2).

    Args:
        y: output of the convolution, (B, K, H, W), channels last; dropout's zeros may go into it.
        groups: of channels, for (2).
        cells: P; the sides of the map are multiples.
        squares: whether to compute `Pooled.square`.
        dropout_state: of the layer's dropout, on the device; None for no dropout.
        dropped: an element is dropped where its byte is below.
    """
    scale = 1.0 if dropout_state is None else 256 / (256 - dropped)
    if gpu.usable(y):
        y, features, mean, square = gpu.pool_cells(
            y, groups, cells, squares, dropout_state, dropped
        )
    else:
        images = y.permute(0, 2, 3, 1).contiguous()
        compute = _native if native.usable(images) else _torch
        images, features, mean, square = compute(
            images, groups, cells, squares, dropout_state, dropped
        )
        y, features = images.permute(0, 3, 1, 2), features.permute(0, 3, 1, 2)
    square = None if square is None else square.permute(0, 3, 1, 2)
    return Pooled(y, features, mean.permute(0, 3, 1, 2), square, scale)


def gradient(pooled: Pooled, mean: Tensor, square: Tensor | None = None) -> Tensor:
    """Compute (3), in the place of `pooled.y`.

    Args:
        pooled: of the forward pass.
        mean: gradient of the loss at the means, (B, K, P, P).
        square: at the means of squares, or None.
    """
    y, cells = pooled.y, mean.shape[-1]
    pixels = y.shape[2] // cells * (y.shape[3] // cells)
    base = (mean * (pooled.scale / pixels)).permute(0, 2, 3, 1).contiguous()
    slope = None
    if square is not None:  # h = y * scale
        slope = (square * (2 * pooled.scale**2 / pixels)).permute(0, 2, 3, 1).contiguous()
    if gpu.usable(y):
        return gpu.cell_gradient(y, base, slope)
    images = y.permute(0, 2, 3, 1)
    if native.usable(images):
        batch, height, width, channels = images.shape
        native.call(
            f"pooled_gradient_{str(y.dtype).removeprefix('torch.')}",
            *(images, batch, height, width, channels, cells, base, slope),
        )
        return y
    size = y.shape[2:]
    found = F.interpolate(base.permute(0, 3, 1, 2), size)
    if slope is not None:
        found = found + F.interpolate(slope.permute(0, 3, 1, 2), size) * y
    return torch.where(y > 0, found, 0.0).to(y.dtype)


Found = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""y and features as (B, H, W, K), moments as (B, P, P, K)."""


def _native(
    y: Tensor,
    groups: int,
    cells: int,
    squares: bool,
    dropout_state: Tensor | None,
    dropped: int,
) -> Found:
    images, height, width, channels = y.shape
    features, mean = torch.empty_like(y), torch.empty(images, cells, cells, channels)
    square = torch.empty_like(mean) if squares else None
    native.call(
        f"pooled_{str(y.dtype).removeprefix('torch.')}",
        *(y, dropout_state, dropped, images, height, width, channels, groups, cells),
        *(EPSILON, features, mean, square),
    )
    return y, features, mean, square


def _torch(
    y: Tensor,
    groups: int,
    cells: int,
    squares: bool,
    dropout_state: Tensor | None,
    dropped: int,
) -> Found:
    images, height, width, channels = y.shape
    scale = 1.0
    if dropout_state is not None:
        shape = torch.Size((images, channels, height, width))
        y = y * (drawn_bytes(dropout_state, shape) >= dropped)
        scale = 256 / (256 - dropped)
    h = F.relu(y.to(torch.promote_types(y.dtype, torch.float32))).permute(0, 3, 1, 2) * scale
    side = height // cells, width // cells
    mean = F.avg_pool2d(h, side).permute(0, 2, 3, 1)
    square = F.avg_pool2d(h.square(), side).permute(0, 2, 3, 1) if squares else None
    features = F.group_norm(h, groups).to(y.dtype).permute(0, 2, 3, 1)
    return y, features, mean, square
