"""The networks vgg8b and vgg11b, whose layers are convolutions with batch norm.

Source: Nøkland and Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from rayff.models.zoo import ModuleRow

WIDTH = 128
_VGG8B = ((1, False), (2, True), (2, False), (4, True), (4, True), (4, True))
_VGG11B = (
    *((1, False), (1, False), (1, False), (2, True), (2, False)),
    *((4, True), (4, False), (4, True), (4, True)),
)
"""Of each convolution the channels, as a multiple of the width, and whether a pool follows."""
_FEATURES = 8
"""Those of the fully connected layer, as a multiple of the width."""


class Convolution(nn.Module):
    """3x3 convolution, batch norm and leaky ReLU, and a 2x2 max pool of what is handed on.

    Args:
        in_channels: K'.
        channels: K.
        pool: whether the features are pooled; the loss sees them before.
    """

    def __init__(self, in_channels: int, channels: int, *, pool: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """Return h, (B, K, H, W), of features (B, K', H, W)."""
        return F.leaky_relu(self.norm(self.conv(x)))

    def hand_on(self, h: Tensor) -> Tensor:
        """Return the features for the next layer, (B, K, H / 2, W / 2) with a pool."""
        return F.max_pool2d(h, 2) if self.pool else h


class FullyConnected(nn.Module):
    """Linear layer on all features, batch norm and leaky ReLU.

    Args:
        in_features: of an image.
        features: F.
    """

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, features)
        self.norm = nn.BatchNorm1d(features)

    def forward(self, x: Tensor) -> Tensor:
        """Return h, (B, F), of features (B, ...)."""
        return F.leaky_relu(self.norm(self.linear(x.flatten(1))))


def vgg8b(
    num_classes: int, image_channels: int, image_size: int, width: int | None
) -> list[ModuleRow]:
    """Return 6 convolutions, 1, 2 | 2, 4 | 4 | 4 | times the width, and a linear layer."""
    return _rows(_VGG8B, image_channels, image_size, width or WIDTH)


def vgg11b(
    num_classes: int, image_channels: int, image_size: int, width: int | None
) -> list[ModuleRow]:
    """Return 9 convolutions, 1, 1, 1, 2 | 2, 4 | 4, 4 | 4 | times the width, and a linear one."""
    return _rows(_VGG11B, image_channels, image_size, width or WIDTH)


def _rows(
    table: tuple[tuple[int, bool], ...], channels: int, size: int, width: int
) -> list[ModuleRow]:
    rows: list[ModuleRow] = []
    for factor, pool in table:
        rows.append(ModuleRow(partial(Convolution, channels, factor * width, pool=pool)))
        channels = factor * width
        size = size // 2 if pool else size
    return [*rows, ModuleRow(partial(FullyConnected, channels * size**2, _FEATURES * width))]
