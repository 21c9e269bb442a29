"""Base classes of local losses: of a layer's pooled moments, and of its map.

Shape legend: B batch, K channels, C classes, H x W pixels, P x P cells of a map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayff.config.local_loss import LossConfig, Tier
from rayff.models.architecture import Spec


class LocalLoss(nn.Module):
    """What a layer minimises, and its logits: `forward(h, labels) -> (logits, losses)`.

    Args:
        spec: the layer; a convolution or a module, whose shapes have the same names.
        num_classes: C.
        config: the options of the loss.
    """

    tier: ClassVar[Tier] = "map"
    sums_logits: ClassVar[bool] = False
    """Whether logits of several layers are summed as they are, as goodness is; of other losses
    their log-probabilities are."""
    couples_images: ClassVar[bool] = False
    """Whether the loss of one image depends on the others of the batch; such a batch cannot be
    split among replicas."""
    dtype: torch.dtype = torch.float32
    """Number format in which the layer computes. The activation comes in float32 all the same; a
    loss with convolutions of its own may compute them in this one."""

    class_weights: Tensor | None
    """(C,), float32."""

    def __init__(self, spec: Spec, num_classes: int, config: LossConfig) -> None:
        super().__init__()
        self.spec = spec
        self.num_classes = num_classes
        self.config = config
        weights = config.class_weights
        found = None if weights is None else torch.tensor(weights, device="cpu")
        self.register_buffer("class_weights", found, persistent=False)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross entropy of each image, (B,), with class weights and label smoothing.

        Args:
            logits: (B, C).
            labels: (B,).
        """
        weights = self.class_weights
        return F.cross_entropy(
            *(logits, labels, None if weights is None else weights.to(logits)),
            reduction="none",
            label_smoothing=self.config.label_smoothing,
        )


@dataclass(frozen=True)
class Moments:
    """What a pooled loss sees of an activation h whose map is divided into P x P equal cells."""

    mean: Tensor
    """Mean of h in each cell, (B, K, P, P)."""
    square: Tensor | None = None
    """Mean of h squared in each cell, (B, K, P, P); where the loss asks for it."""

    @property
    def std(self) -> Tensor:
        """Standard deviation of each channel over the whole map, (B, K)."""
        if self.square is None:
            raise AttributeError("a loss with `squares = False` has no standard deviations")
        mean, square = self.mean.mean(dim=(2, 3)), self.square.mean(dim=(2, 3))
        # the small number bounds the slope of the root for a channel without any variance
        return (square - mean**2).clamp_min(0).add(1e-5).sqrt()


class PooledLoss(LocalLoss):
    """A loss of pooled moments: `forward(moments, labels) -> (logits, losses)`.

    Its gradient at the map follows from that at the moments without a tape, so the fast rule
    trains it. A loss sets `cells` in its constructor.
    """

    tier: ClassVar[Tier] = "pooled"
    squares: ClassVar[bool] = False
    """Whether the loss reads `Moments.square`."""
    cells: int = 1
    """P: cells a side. The map's side must be a multiple."""

    def moments(self, h: Tensor) -> Moments:
        """Return the moments of an activation (B, K, H, W); autograd passes through."""
        cell = h.shape[-2] // self.cells, h.shape[-1] // self.cells
        mean = F.avg_pool2d(h, cell)
        return Moments(mean, F.avg_pool2d(h.square(), cell) if self.squares else None)


def as_map(h: Tensor) -> Tensor:
    """Return an activation as a map (B, K, H, W).

    Single features (B, F) are channels of one pixel, tokens (B, T, D) a row of T pixels.
    """
    if h.dim() == 2:
        return h[:, :, None, None]
    return h.transpose(1, 2)[:, :, None] if h.dim() == 3 else h


def cells_within(spec: Spec, head_dim: int) -> int:
    """Return the cells a side, P, doubled while K * P * P stays within `head_dim`."""
    cells = 1
    while spec.out_size % (2 * cells) == 0:
        if spec.out_channels * (2 * cells) ** 2 > head_dim:
            break
        cells *= 2
    return cells
