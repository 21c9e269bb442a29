"""Goodness of channel groups: one group a class, whose mean activation is the class's logit."""

from __future__ import annotations

from torch import Tensor

from rayff.config.errors import UserError
from rayff.config.local_loss import LossConfig
from rayff.learning.losses.local_loss import Moments, PooledLoss
from rayff.models.architecture import Spec


class Goodness(PooledLoss):
    """The logit of class c is the mean of channel group c (DeeperForward, equations 5 to 8)."""

    sums_logits = True

    def __init__(self, spec: Spec, num_classes: int, config: LossConfig) -> None:
        super().__init__(spec, num_classes, config)
        if spec.out_channels % num_classes:
            raise UserError(
                f"--loss {config.name}: the {spec.out_channels} channels of layer {spec.index} do "
                f"not split into {num_classes} equal groups, one a class; choose another --width, "
                "or a loss with a head, such as --loss linear"
            )

    @property
    def in_closed_form(self) -> bool:
        """Whether the fused kernels compute the loss: plain cross entropy."""
        return self.class_weights is None and not self.config.label_smoothing

    def forward(
        self, moments: Moments, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return logits (B, C) and, with labels (B,), the loss of each image (B,)."""
        seen = moments.mean if moments.square is None else moments.square
        logits = seen.reshape(seen.shape[0], self.num_classes, -1).mean(dim=2)
        return logits, None if labels is None else self.cross_entropy(logits, labels)


class SquaredGoodness(Goodness):
    """The logit of class c is the mean square of channel group c (Hinton, 2022)."""

    squares = True
