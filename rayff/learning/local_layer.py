"""What the layers of a chain have in common: an activation, features and a local loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from rayff.config.local_loss import LossConfig
from rayff.learning.generators import Share, head_seed
from rayff.learning.losses import LocalLoss, local_loss, make_loss, scores
from rayff.models.architecture import Spec


class LocalLayer(nn.Module, ABC):
    """A layer that learns from a local loss of its activation.

    Attributes:
        spec: number and shapes.
        num_classes: C.
        dropped: of 256 activations, how many training sets to zero.
        seed: the run's seed.
        dtype: number format in which the layer computes, and of its features.
        frozen: whether it only runs forward in training, without dropout and as in evaluation.
        loss: of the activation.
    """

    spec: Spec
    num_classes: int
    dropped: int
    seed: int
    dtype: torch.dtype
    frozen: bool = False
    loss: nn.Module

    def train(self, mode: bool = True) -> LocalLayer:
        """Switch between training and evaluation; a frozen layer stays in evaluation."""
        return super().train(mode and not self.frozen)

    def add_loss(self, config: LossConfig, own: Any = None) -> None:
        """Make the layer's loss, under a seed of its own.

        Args:
            config: the loss of the run and its options.
            own: the loss of this layer alone, by name or as a class; None for that of the run.

        Raises:
            UserError: it cannot be made.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(head_seed(self.seed, self.spec.index))
            self.loss = make_loss(config, self.spec, self.num_classes, own)
        if isinstance(self.loss, LocalLoss):
            self.loss.dtype = self.dtype

    @abstractmethod
    def dropout_state(self, share: Share, device: torch.device) -> Tensor:
        """Return the state of the layer's dropout with a share of a batch, in host memory."""

    @abstractmethod
    def outputs(self, x: Tensor, dropout_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the activation h of features x, and the features for the next layer, detached.

        Args:
            x: features, detached here.
            dropout_state: of the layer's dropout; None for no dropout.
        """

    def losses(self, h: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return logits (B, C) of an activation and, with labels (B,), each image's loss, (B,)."""
        return local_loss(self.loss, h, labels, self.num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features for the next layer and scores (B, C), without dropout."""
        h, features = self.outputs(x)
        logits, _ = self.losses(h, None)
        return features, scores(self.loss, logits)
