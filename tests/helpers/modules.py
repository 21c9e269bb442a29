"""Networks of modules of a user's own, as `--arch tests.helpers.modules:NAME` selects them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayff.models.zoo import ModuleRow
from tests.helpers.losses import LINEAR, LinearHead

HERE = __name__


class Normed(nn.Module):
    """Convolution, batch norm and ReLU; the next layer receives the pooled map."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))

    def hand_on(self, h: Tensor) -> Tensor:
        return F.max_pool2d(h, 4)


class Residual(nn.Module):
    """Two convolutions with a shortcut around them, and a drawn mask in between."""

    def __init__(self, channels: int, dropout: float = 0.3) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(2, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.dropout(F.relu(self.norm(self.first(x))))))


class Tokens(nn.Module):
    """Patches of a map as tokens (B, T, D)."""

    def __init__(self, channels: int, features: int, side: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, features, side, side)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention with a shortcut, (B, T, D)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.attention = nn.MultiheadAttention(features, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


class Dense(nn.Module):
    """A linear layer with ReLU on all features, (B, F); one of its parameters does not learn."""

    def __init__(self, in_features: int, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, features)
        self.scale = nn.Parameter(torch.full((features,), 1.5), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x.flatten(1))) * self.scale


def every_kind(
    num_classes: int, image_channels: int, image_size: int, width: int | None
) -> list[Any]:
    """Batch norm, a residual block, tokens, attention and single features; two own losses."""
    width = width or 4
    return [
        partial(Normed, image_channels, width),
        ModuleRow(partial(Residual, width), loss="predsim"),
        partial(Tokens, width, 6, 4),
        ModuleRow(partial(Attention, 6)),
        ModuleRow(partial(Dense, 4 * 6, 8), loss=Flat),
    ]


class Flat(LinearHead):
    """A head on single features."""

    def forward(self, h: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return super().forward(h[:, :, None, None], labels)


def per_image(
    num_classes: int, image_channels: int, image_size: int, width: int | None
) -> list[Any]:
    """Layers that compute each image by itself."""
    width = width or 4
    return [
        partial(nn.Conv2d, image_channels, width, 3, 2, 1),
        partial(Residual, width, dropout=0.0),
        partial(Dense, width * 16 * 16, 8),
    ]


def _one(make: Any, loss: Any = None) -> Any:
    def build(
        num_classes: int, image_channels: int, image_size: int, width: int | None
    ) -> list[Any]:
        return [partial(nn.Conv2d, image_channels, 4, 3, padding=1), ModuleRow(make, loss)]

    return build


class InPlace(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.relu(x, inplace=True))


class HandsOnInPlace(nn.Conv2d):
    def hand_on(self, h: Tensor) -> Tensor:
        return h.relu_()


class Pair(nn.Conv2d):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Frozen(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(4, 4, 1)
        self.requires_grad_(requires_grad=False)


class Masked(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(4, 4, 1)
        self.register_buffer("mask", torch.full((3,), float("-inf")))


class WithExtraState(nn.Conv2d):
    def get_extra_state(self) -> Any:
        return {"calls": 3}


class Counting(nn.Conv2d):
    """Counts its calls, as statistics of batches would."""

    def __init__(self) -> None:
        super().__init__(4, 4, 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return super().forward(x)


class Centred(nn.Conv2d):
    """Subtracts the mean of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=0))


class ConstantBatch(nn.Conv2d):
    """Takes its number of images as a number of Python, which an export makes a constant of."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).reshape(len(x), 4, 32, 32)


class CutsBatches(nn.Conv2d):
    """Takes the two images on which it is tried for all there are."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:2])


class DetachedModule(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


_SHARED = nn.Conv2d(4, 4, 3, padding=1)
_CONV = partial(nn.Conv2d, 4, 4, 3, padding=1)

fits_not = _one(partial(nn.Conv2d, 5, 4, 3))
fails = _one(partial(nn.Conv2d, 0.5, "x"))
itself = _one(_SHARED)
no_module = _one(lambda: 3)
returns_a_pair = _one(partial(Pair, 4, 4, 1))
in_double = _one(partial(nn.Conv2d, 4, 4, 1, dtype=torch.float64))
lazy = _one(partial(nn.LazyConv2d, 4, 1))
hands_on_in_place = _one(partial(HandsOnInPlace, 4, 4, 1))
in_place = _one(partial(InPlace, 4, 4, 1))
nothing_learns = _one(Frozen)
parameter_free = _one(nn.ReLU, loss="goodness")
masked = _one(Masked)
extra_state = _one(partial(WithExtraState, 4, 4, 1))
detached = _one(partial(DetachedModule, 4, 4, 1))
apart = _one(partial(nn.Conv2d, 4, 4, 1), loss="tests.helpers.losses:Apart")
cuts_batches = _one(partial(CutsBatches, 4, 4, 1))
counting = _one(Counting, loss=LINEAR)
centred = _one(partial(Centred, 4, 4, 1), loss=LINEAR)
drawing = _one(partial(Residual, 4), loss=LINEAR)
batch_norm = _one(partial(Normed, 4, 4), loss=LINEAR)
coupling_loss = _one(_CONV, loss="predsim")
unknown_loss = _one(_CONV, loss="predsin")
loss_of_no_module = _one(_CONV, loss=lambda *_: 3)


def shared(num_classes: int, image_channels: int, image_size: int, width: int | None) -> list[Any]:
    conv = nn.Conv2d(image_channels, image_channels, 3, padding=1)
    return [lambda: conv, lambda: nn.Sequential(conv)]


def constant_batch(
    num_classes: int, image_channels: int, image_size: int, width: int | None
) -> list[Any]:
    convolution = partial(nn.Conv2d, image_channels, 4, 3, padding=1)
    return [convolution, partial(ConstantBatch, 4, 4, 1), partial(nn.Conv2d, 4, 4, 1)]


def own_losses_alone(
    num_classes: int, image_channels: int, image_size: int, width: int | None
) -> list[Any]:
    return [ModuleRow(partial(nn.Conv2d, image_channels, 4, 3), loss="predsim")]


def mixed_with_rows(
    num_classes: int, image_channels: int, image_size: int, width: int | None
) -> list[Any]:
    return [_CONV, 3]


def nothing(
    num_classes: int, image_channels: int, image_size: int, width: int | None
) -> list[Any]:
    return []
