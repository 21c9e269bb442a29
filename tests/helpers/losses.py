"""Local losses of a user's own, as `--loss tests.helpers.losses:NAME` selects them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayff.config.local_loss import LossConfig
from rayff.learning.losses import Moments, PooledLoss
from rayff.models.architecture import LayerSpec

LINEAR = "tests.helpers.losses:LinearHead"
SPREAD = "tests.helpers.losses:Spread"


class LinearHead(nn.Module):
    """Cross entropy of a linear head, with parameters of its own, on the channels' means."""

    def __init__(self, spec: LayerSpec, num_classes: int, config: LossConfig) -> None:
        super().__init__()
        self.head = nn.Linear(spec.out_channels, num_classes)

    def forward(self, h: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits: Tensor = self.head(h.mean(dim=(2, 3)))
        losses = None if labels is None else F.cross_entropy(logits, labels, reduction="none")
        return logits, losses


class WrongShape(LinearHead):
    """Logits of one class too few."""

    def forward(self, h: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits, losses = super().forward(h, labels)
        return logits[:, 1:], losses


class OfTheBatch(LinearHead):
    """The mean over the batch, which torch's losses return by default."""

    def forward(self, h: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits, losses = super().forward(h, labels)
        return logits, None if losses is None else losses.mean()


class Failing(LinearHead):
    """A mistake in the middle."""

    def forward(self, h: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return super().forward(h[:, 1:], labels)


class Detached(LinearHead):
    """Nothing to learn from."""

    def forward(self, h: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            return super().forward(h, labels)


class Apart(LinearHead):
    """Its head learns, and the layer does not."""

    def forward(self, h: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return super().forward(h.detach(), labels)


class NoNumber(LinearHead):
    """Nothing to learn from either."""

    def forward(self, h: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits, losses = super().forward(h, labels)
        return logits, None if losses is None else losses * torch.nan


class CentringTheMap(LinearHead):
    """Compares the images of a batch, and does not say so."""

    def forward(self, h: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return super().forward(h - h.mean(dim=0), labels)


class WithoutLogits(LinearHead):
    """The losses alone."""

    def forward(self, h: Tensor, labels: Tensor | None = None) -> Tensor | None:  # type: ignore[override]
        return super().forward(h, labels)[1]


class NeedsLabels(LinearHead):
    """It cannot classify."""

    def forward(self, h: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        return super().forward(h, labels + 0)


def function(spec: LayerSpec, num_classes: int, config: LossConfig) -> LinearHead:
    """No class."""
    return LinearHead(spec, num_classes, config)


class Spread(PooledLoss):
    """A pooled loss of a user's own: a linear head on means and standard deviations."""

    squares = True

    def __init__(self, spec: LayerSpec, num_classes: int, config: LossConfig) -> None:
        super().__init__(spec, num_classes, config)
        self.head = nn.Linear(2 * spec.out_channels, num_classes)

    def forward(
        self, moments: Moments, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        logits = self.head(torch.cat((moments.mean.flatten(1), moments.std), dim=1))
        return logits, None if labels is None else self.cross_entropy(logits, labels)


class Centring(Spread):
    """A pooled loss that compares the images of a batch, and does not say so."""

    def forward(
        self, moments: Moments, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        mean = moments.mean - moments.mean.mean(dim=0)
        return super().forward(Moments(mean, moments.square), labels)
