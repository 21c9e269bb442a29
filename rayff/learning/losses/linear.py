"""A linear head on the pooled map, alone or with a similarity term.

Source: Nøkland and Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019: the
losses "pred" and, with the standard deviations of channels in place of a convolution, "predsim".
"""

from __future__ import annotations

from torch import Tensor, nn

from rayff.config.local_loss import LossConfig
from rayff.learning.losses.local_loss import Moments, PooledLoss, cells_within
from rayff.learning.losses.similarity import similarity_losses
from rayff.models.architecture import Spec


class Linear(PooledLoss):
    """Cross entropy of a linear layer on the pooled map, whose weights begin at zero.

    The map has P x P cells, with P doubled while K * P * P <= `--head-dim`.
    """

    def __init__(self, spec: Spec, num_classes: int, config: LossConfig) -> None:
        super().__init__(spec, num_classes, config)
        self.cells = cells_within(spec, config.head_dim)
        self.head = nn.Linear(spec.out_channels * self.cells**2, num_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, moments: Moments, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return logits (B, C) and, with labels (B,), the loss of each image (B,)."""
        logits = self.head(moments.mean.flatten(1))
        return logits, None if labels is None else self.cross_entropy(logits, labels)


class LinearSimilarity(Linear):
    """(1 - w) `Linear` + w times the error of the similarity of channels' standard deviations.

    w is `--similarity-weight`, 0.9 by default: images of a class should vary in the same channels.
    """

    squares = True
    couples_images = True

    def forward(
        self, moments: Moments, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return logits (B, C) and, with labels (B,), the loss of each image (B,)."""
        logits, losses = super().forward(moments, labels)
        if losses is None or labels is None:
            return logits, None
        weight = self.config.similarity_weight
        weight = 0.9 if weight is None else weight
        # a map of one pixel has no deviation; there the channels themselves are compared
        rows = moments.std if self.spec.out_size > 1 else moments.mean.flatten(1)
        similarity = similarity_losses(rows, labels, self.num_classes)
        return logits, (1 - weight) * losses + weight * similarity
