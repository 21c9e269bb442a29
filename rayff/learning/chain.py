"""A chain of layers with its shortcuts; any slice of a chain is a chain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayff.kernels import gpu
from rayff.learning.layer import CWConv
from rayff.models.architecture import Architecture, LayerSpec

Visit = Callable[[CWConv, Tensor], Tensor]
"""What happens to a layer that a batch passes: it takes the features and returns the next."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What goes from one layer to the next, and so over a cut."""

    features: Tensor
    """(B, K, H, W)."""
    shortcut: Tensor | None = None
    """The open block's input, (B, K', H', W'); None where no block is open."""


def normalise(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Layer-normalise uint8 images (B, K, 32, 32) over channels and pixels."""
    pixels = images.float() / 255
    return F.layer_norm(pixels, pixels.shape[1:]).to(dtype)


def join(features: Tensor, shortcut: Tensor, spec: LayerSpec) -> Tensor:
    """Let a block's shortcut meet its output: added or concatenated, pooled 2x2 if larger."""
    if gpu.usable(features, shortcut):
        return gpu.join(features, shortcut, spec)
    if shortcut.shape[-1] != features.shape[-1]:
        shortcut = F.avg_pool2d(shortcut, 2)
    return features + shortcut if spec.join == "add" else torch.cat((features, shortcut), dim=1)


class Chain(nn.Module):
    """Consecutive layers of a network, in order."""

    def __init__(self, architecture: Architecture, layers: Iterable[CWConv]) -> None:
        super().__init__()
        self.architecture = architecture
        self.layers = nn.ModuleList(layers)

    @classmethod
    def build(
        cls,
        architecture: Architecture,
        *,
        dropout: float = 0.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Chain:
        """Return a chain with fresh weights; the arguments are those of CWConv."""
        classes = architecture.num_classes
        return cls(
            architecture,
            (
                CWConv(spec, classes, dropout=dropout, seed=seed, dtype=dtype)
                for spec in architecture.layers
            ),
        )

    def __len__(self) -> int:
        return len(self.architecture)

    def __getitem__(self, key: slice) -> Chain:
        """Return a slice that shares its layers with this chain."""
        return Chain(self.architecture[key], self.cwconvs()[key])

    def cwconvs(self) -> Sequence[CWConv]:
        """Return the layers with their own type."""
        return [layer for layer in self.layers if isinstance(layer, CWConv)]

    def walk(self, activations: Activations, visit: Visit) -> Activations:
        """Take a batch through all layers, shortcuts included; `visit` decides what each does."""
        features, shortcut = activations.features, activations.shortcut
        for layer in self.cwconvs():
            if layer.spec.opens_block:
                shortcut = features
            features = visit(layer, features)
            if layer.spec.join != "none":
                assert shortcut is not None, "a block that joins was opened before"
                features, shortcut = join(features, shortcut.detach(), layer.spec), None
        return Activations(features=features, shortcut=shortcut)

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the features."""
        return self.cwconvs()[0].dtype

    @torch.no_grad()
    def evaluate(
        self,
        activations: Activations,
        classify: Callable[[CWConv, Tensor], tuple[Tensor, Tensor]] = CWConv.forward,
    ) -> tuple[Activations, list[Tensor]]:
        """Return what leaves the chain and each layer's goodness, (B, C) each; no dropout."""
        goodness: list[Tensor] = []

        def visit(layer: CWConv, x: Tensor) -> Tensor:
            features, layer_goodness = classify(layer, x)
            goodness.append(layer_goodness)
            return features

        return self.walk(activations, visit), goodness


class ForwardForward(nn.Module):
    """A trained network, ready to classify; needs neither Ray nor the data it learned from.

    Args:
        chain: all layers up to the last that is needed.
        window: first and last layer whose goodness is summed (signal integrating and pruning).
        class_names: one a class.
    """

    def __init__(
        self, chain: Chain, window: tuple[int, int], class_names: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.chain = chain
        self.window = window
        self.class_names = class_names

    @property
    def architecture(self) -> Architecture:
        """All layers."""
        return self.chain.architecture

    @property
    def first_weight(self) -> Tensor:
        """The filters of the first layer, (K, channels, height, width)."""
        return self.chain.cwconvs()[0].weight

    @property
    def num_classifiers(self) -> int:
        """Layers that say a class: all of them."""
        return len(self.chain)

    @property
    def depth(self) -> int:
        """Layers that must be computed to classify."""
        return self.window[1] + 1

    @torch.no_grad()
    def goodness(self, images: Tensor, num_classifiers: int | None = None) -> Tensor:
        """Return the goodness of the first `num_classifiers` layers, (L, B, C).

        `images` are uint8, (B, K, 32, 32).
        """
        activations = Activations(features=normalise(images, self.chain.dtype))
        return torch.stack(self.chain[:num_classifiers].evaluate(activations)[1])

    def forward(self, images: Tensor) -> Tensor:
        """Return the summed goodness of the window, (B, C): the logits of the classes."""
        first, last = self.window
        return self.goodness(images, last + 1)[first:].sum(dim=0)

    @torch.no_grad()
    def early_exit(self, image: Tensor, threshold: float) -> tuple[Tensor, int]:
        """Classify one image with as few layers as are sure enough.

        Args:
            image: uint8, (K, 32, 32).
            threshold: probability at which no further layer is asked.

        Returns:
            the probabilities, (C,), and the number of layers that were computed.
        """
        first, last = self.window
        activations = Activations(features=normalise(image[None], self.chain.dtype))
        total = torch.zeros(self.chain.architecture.num_classes, device=image.device)
        for index in range(last + 1):
            activations, (goodness,) = self.chain[index : index + 1].evaluate(activations)
            if index >= first:
                total = total + goodness[0]
                if total.softmax(dim=0).max() >= threshold:
                    break
        return total.softmax(dim=0), index + 1
