"""A trained network of local classifiers: every layer gives logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from rayff.config.local_loss import LossConfig
from rayff.config.recipe import Method
from rayff.learning.chain import Activations, Chain, normalise
from rayff.learning.classifier import Classifier
from rayff.models.architecture import Architecture, Spec


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
    def learned_layers(self) -> list[tuple[Spec, nn.Module]]:
        """Each layer with the module that holds its parameters."""
        return [(layer.spec, layer) for layer in self.chain.parts()]

    def layers_computed(self, classifier: int) -> int:
        """Return how many layers must be computed for a layer's logits."""
        return classifier + 1

    @torch.no_grad()
    def iter_logits(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the logits of one layer after the other, (B, C) each."""
        activations = Activations(features=normalise(images, self.chain.dtype))
        for index in range(len(self.chain)):
            activations, (logits,) = self.chain[index : index + 1].evaluate(activations)
            yield logits
