"""Base class of trained networks: several classifiers, of which a window is summed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from rayff.models.architecture import Architecture, Spec


class Classifier(nn.Module, ABC):
    """A trained network that takes uint8 images; it needs neither Ray nor its training data.

    Args:
        architecture: all layers.
        window: first and last classifier whose logits are summed.
        class_names: one a class.
    """

    def __init__(
        self, architecture: Architecture, window: tuple[int, int], class_names: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.window = window
        self.class_names = class_names

    @property
    @abstractmethod
    def learned_layers(self) -> list[tuple[Spec, nn.Module]]:
        """Each layer with the module that holds its parameters."""

    @abstractmethod
    def iter_logits(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the logits of one classifier after the other, (B, C) each, as they are computed.

        `images` are uint8, (B, K, H, W).
        """

    @abstractmethod
    def layers_computed(self, classifier: int) -> int:
        """Return how many layers must be computed for a classifier."""

    @property
    def depth(self) -> int:
        """Layers that must be computed to classify with the window."""
        return self.layers_computed(self.window[1])

    @property
    def num_classifiers(self) -> int:
        """Number of layers that give logits."""
        return sum(1 for index in range(len(self.architecture)) if self._has_classifier(index))

    def _has_classifier(self, layer: int) -> bool:
        return True

    @property
    def first_weight(self) -> Tensor | None:
        """The filters of the first layer, (K, channels, height, width); None without any."""
        _, first = self.learned_layers[0]
        channels = self.architecture.image_channels
        filters = (p for p in first.parameters() if p.dim() == 4 and p.shape[1] == channels)
        return next(filters, None)

    @torch.no_grad()
    def logits(self, images: Tensor, num_classifiers: int | None = None) -> Tensor:
        """Return the logits of the first `num_classifiers` classifiers, (L, B, C)."""
        return torch.stack(list(islice(self.iter_logits(images), num_classifiers)))

    def forward(self, images: Tensor) -> Tensor:
        """Return the summed logits of the window, (B, C), of uint8 images (B, K, H, W)."""
        first, last = self.window
        return self.logits(images, last + 1)[first:].sum(dim=0)

    @torch.no_grad()
    def early_exit(self, image: Tensor, threshold: float) -> tuple[Tensor, int]:
        """Classify one image with as few layers as reach a probability.

        Args:
            image: uint8, (K, H, W).
            threshold: probability at which no further layer is computed.

        Returns:
            the probabilities, (C,), and the number of layers that were computed.
        """
        first, last = self.window
        total = torch.zeros(self.architecture.num_classes, device=image.device)
        classifier = 0
        for classifier, logits in enumerate(self.iter_logits(image[None])):  # noqa: B007
            if classifier >= first:
                total = total + logits[0]
                if total.softmax(dim=0).max() >= threshold:
                    break
            if classifier == last:
                break
        return total.softmax(dim=0), self.layers_computed(classifier)
