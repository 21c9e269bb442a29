"""A chain of layers with its shortcuts; any slice of a chain is a chain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayff.config.local_loss import GOODNESS, LossConfig
from rayff.kernels import gpu
from rayff.learning.generators import Share
from rayff.learning.layer import CWConv
from rayff.learning.local_layer import LocalLayer
from rayff.learning.module_layer import ModuleLayer
from rayff.models.architecture import Architecture, LayerSpec, Spec
from rayff.models.zoo import module_rows

Visit = Callable[[LocalLayer, Tensor], Tensor]
"""Called for each layer of a walk: takes the layer and its input, returns the next one's input."""


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What goes from one layer to the next, and over a boundary between stages."""

    features: Tensor
    """(B, K, H, W); of modules also (B, F) or (B, T, D)."""
    shortcut: Tensor | None = None
    """The open block's input, (B, K', H', W'); None where no block is open."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Activations:
        """Return the activations with a function applied to each tensor, features first."""
        features = function(self.features)
        shortcut = None if self.shortcut is None else function(self.shortcut)
        return Activations(features=features, shortcut=shortcut)


def normalise(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Layer-normalise uint8 images (B, K, H, W) over channels and pixels."""
    pixels = images.float() / 255
    return F.layer_norm(pixels, pixels.shape[1:]).to(dtype)


def join(features: Tensor, shortcut: Tensor, spec: LayerSpec) -> Tensor:
    """Add or concatenate a block's shortcut to its output, pooled 2x2 where it is larger."""
    if gpu.usable(features, shortcut):
        return gpu.join(features, shortcut, spec)
    if shortcut.shape[-1] != features.shape[-1]:
        shortcut = F.avg_pool2d(shortcut, 2)
    return features + shortcut if spec.join == "add" else torch.cat((features, shortcut), dim=1)


def open_shortcut(spec: Spec, activations: Activations) -> Tensor | None:
    """Return the shortcut that is open in a layer: its own input, where it opens a block."""
    return activations.features if spec.opens_block else activations.shortcut


def close_block(spec: Spec, features: Tensor, shortcut: Tensor | None) -> Activations:
    """Return what leaves a layer: its features, joined by the shortcut where its block ends."""
    if spec.join == "none":
        return Activations(features=features, shortcut=shortcut)
    assert shortcut is not None, "a block that joins was opened before"
    assert isinstance(spec, LayerSpec), "modules join no shortcut"
    return Activations(features=join(features, shortcut.detach(), spec))


class Chain(nn.Module):
    """Consecutive layers of a network, in order."""

    def __init__(self, architecture: Architecture, layers: Iterable[LocalLayer]) -> None:
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
        loss: LossConfig = GOODNESS,
    ) -> Chain:
        """Return a chain with initial weights; the arguments are those of its layers.

        Raises:
            ImportPathError: the function that makes its modules is not here, or is another one.
            UserError: a module or a loss cannot be made.
        """
        classes = architecture.num_classes
        options: dict[str, Any] = {"dropout": dropout, "seed": seed, "dtype": dtype, "loss": loss}
        layers: list[LocalLayer] = [
            CWConv(spec, classes, **options) for spec in architecture.convolutions
        ]
        if architecture.source is not None:
            rows = module_rows(architecture.source, classes)
            options["arch"] = f"--arch {architecture.source.function}"
            layers = [ModuleLayer(rows, spec, classes, **options) for spec in architecture.modules]
        return cls(architecture, layers)

    def __len__(self) -> int:
        return len(self.architecture)

    def __getitem__(self, key: slice) -> Chain:
        """Return a slice that shares its layers with this chain."""
        return Chain(self.architecture[key], self.parts()[key])

    def parts(self) -> Sequence[LocalLayer]:
        """Return the layers with their own type."""
        return [layer for layer in self.layers if isinstance(layer, LocalLayer)]

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the features."""
        return self.parts()[0].dtype

    def dropout_states(self, share: Share, device: torch.device) -> dict[int, Tensor]:
        """Return the dropout state of each layer that drops, by number, in host memory."""
        return {
            layer.spec.index: layer.dropout_state(share, device)
            for layer in self.parts()
            if layer.dropped and not layer.frozen
        }

    def walk(self, activations: Activations, visit: Visit) -> Activations:
        """Take a batch through all layers, shortcuts included."""
        for layer in self.parts():
            shortcut = open_shortcut(layer.spec, activations)
            features = visit(layer, activations.features)
            del activations  # a layer's input is freed before its output meets the shortcut
            activations = close_block(layer.spec, features, shortcut)
            del features
        return activations

    @torch.no_grad()
    def evaluate(
        self,
        activations: Activations,
        classify: Callable[[LocalLayer, Tensor], tuple[Tensor, Tensor]] = LocalLayer.__call__,
    ) -> tuple[Activations, list[Tensor]]:
        """Return what leaves the chain and each layer's logits, (B, C) each; no dropout."""
        self.eval()
        logits: list[Tensor] = []

        def visit(layer: LocalLayer, x: Tensor) -> Tensor:
            features, layer_logits = classify(layer, x)
            logits.append(layer_logits)
            return features

        return self.walk(activations, visit), logits
