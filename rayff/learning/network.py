"""A trained network of local classifiers: every layer gives logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayff.config.local_loss import LossConfig
from rayff.config.recipe import Method
from rayff.learning.chain import Activations, Chain, close_block, open_shortcut
from rayff.learning.classifier import Classifier
from rayff.models.architecture import Architecture


class LocalNetwork(Classifier):
    """A chain of layers, ready to classify with a window of them (SIP).

    Args:
        chain: all layers.
        window: first and last layer whose logits are summed.
        class_names: one a class.
    """

    def __init__(
        self, chain: Chain, window: tuple[int, int], class_names: tuple[str, ...]
    ) -> None:
        super().__init__(chain.architecture, window, class_names)
        self.chain = chain
        self.dtype = chain.dtype
        self.eval()

    @classmethod
    def build(
        cls,
        architecture: Architecture,
        *,
        method: Method,
        loss: LossConfig,
        window: tuple[int, int],
        class_names: tuple[str, ...],
        dtype: torch.dtype,
    ) -> LocalNetwork:
        """Return a network with initial weights."""
        return cls(Chain.build(architecture, dtype=dtype, loss=loss), window, class_names)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers."""
        return self.chain.layers

    def layers_computed(self, classifier: int) -> int:
        """Return how many layers must be computed for a layer's logits."""
        return classifier + 1

    def compute(self, layer: int, activations: Activations) -> tuple[Activations, Tensor]:
        """Return what leaves a layer, and its logits, (B, C)."""
        spec = self.architecture[layer]
        shortcut = open_shortcut(spec, activations)
        features, logits = self.layers[layer](activations.features)
        return close_block(spec, features, shortcut), logits
