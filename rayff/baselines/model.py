"""The same network trained end to end: linear heads, and gradients through all layers.

With one head on the last layer this is backpropagation; with one on every layer, whose losses
are added, backpropagation with deep supervision (Lee et al., AISTATS 2015): the losses of
Forward-Forward without the detach between layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rayff.config.local_loss import LossConfig
from rayff.config.recipe import Method
from rayff.learning.chain import Activations, close_block, join, open_shortcut
from rayff.learning.classifier import Classifier
from rayff.learning.generators import Share, head_seed
from rayff.learning.layer import ConvLayer
from rayff.models.architecture import Architecture, LayerSpec


class EndToEndLayer(ConvLayer):
    """The weights of a layer, which begin as those of Forward-Forward, and its head if any."""

    def __init__(
        self,
        spec: LayerSpec,
        num_classes: int,
        *,
        dropout: float = 0.0,
        seed: int = 0,
        has_head: bool = False,
    ) -> None:
        super().__init__(spec, num_classes, dropout=dropout, seed=seed)
        self.head: nn.Linear | None = None
        if has_head:
            self.head = nn.Linear(spec.feature_channels, num_classes)
            if not self.head.weight.is_meta:
                generator = torch.Generator().manual_seed(head_seed(seed, spec.index))
                nn.init.kaiming_normal_(
                    self.head.weight, nonlinearity="linear", generator=generator
                )
                nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, share: Share | None = None) -> Tensor:
        """Return the normalised features, (B, K, H, W), in the format of `x`, with autograd."""
        if self.spec.pool:
            x = F.avg_pool2d(x, 2)
        weight = self.weight.to(x.dtype)
        h = F.relu(F.conv2d(x, weight, None, self.spec.stride, self.spec.kernel_size // 2))
        if share is None:
            h = F.dropout(h, self.dropped / 256, self.training)
        elif self.training and self.dropped:
            h = self.drop(h, self.dropout_state(share, h.device).to(h.device))
        return F.group_norm(h, self.groups)

    def logits(self, features: Tensor) -> Tensor:
        """Return the head's logits, (B, C), of features behind their shortcut."""
        assert self.head is not None, "a layer that is asked has a head"
        logits: Tensor = self.head(features.mean(dim=(2, 3)).float())
        return logits


class Backpropagation(nn.Module):
    """Convolution, ReLU, dropout and group norm by layer, with shortcuts; heads on the means.

    Args:
        architecture: the whole network.
        dropout: share of activations that training sets to zero.
        seed: of the first weights.
        deep_supervision: a head on every layer instead of the last alone.
        checkpointing: keep the inputs of blocks alone, and compute the rest again.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        dropout: float = 0.0,
        seed: int = 0,
        deep_supervision: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.checkpointing = checkpointing
        specs = architecture.convolutions
        self.layers = nn.ModuleList(
            EndToEndLayer(
                spec,
                architecture.num_classes,
                dropout=dropout,
                seed=seed,
                has_head=deep_supervision or spec is specs[-1],
            )
            for spec in specs
        )

    def parts(self) -> Sequence[EndToEndLayer]:
        """Return the layers with their own type."""
        return [layer for layer in self.layers if isinstance(layer, EndToEndLayer)]

    def forward(self, features: Tensor, share: Share | None = None) -> Tensor:
        """Return the logits of every head, (heads, B, C), of normalised images (B, K, S, S).

        Args:
            features: the images.
            share: which images of which batch they are; it finds the dropout, which is torch's
                own without it.
        """
        return torch.stack(list(self.head_logits(features, share)))

    def head_logits(self, features: Tensor, share: Share | None = None) -> Iterator[Tensor]:
        """Yield the logits of one head after the other, (B, C) each, as they are computed."""
        for block in blocks(self.architecture):
            if self.checkpointing and self.training:
                features, logits = checkpoint(
                    self._block, features, block, share, use_reentrant=False
                )
            else:
                features, logits = self._block(features, block, share)
            yield from logits

    def _block(
        self, features: Tensor, block: Sequence[int], share: Share | None
    ) -> tuple[Tensor, list[Tensor]]:
        entered, logits = features, []
        parts = self.parts()
        for position in block:
            layer = parts[position]
            features = layer(features, share)
            if layer.spec.join != "none":
                features = join(features, entered, layer.spec)
            if layer.head is not None:
                logits.append(layer.logits(features))
        return features, logits


def blocks(architecture: Architecture) -> Iterator[list[int]]:
    """Yield the positions of the layers of each block; a layer outside of all is its own."""
    block: list[int] = []
    for position, spec in enumerate(architecture.layers):
        block.append(position)
        inside = spec.shortcut_channels > 0 and spec.join == "none"
        if not inside or position + 1 == len(architecture):
            yield block
            block = []


class EndToEndNetwork(Classifier):
    """A network trained by backpropagation, ready to classify.

    Args:
        network: all layers.
        window: first and last head whose logits are summed.
        class_names: one a class.
        dtype: number format of the activations.
    """

    def __init__(
        self,
        network: Backpropagation,
        window: tuple[int, int],
        class_names: tuple[str, ...],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(network.architecture, window, class_names)
        self.network = network
        self.dtype = dtype
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
    ) -> EndToEndNetwork:
        """Return a network with initial weights; its heads have a loss of their own."""
        network = Backpropagation(architecture, deep_supervision=method == "bp-deepsup")
        return cls(network, window, class_names, dtype)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers."""
        return self.network.layers

    def _has_classifier(self, layer: int) -> bool:
        return self.network.parts()[layer].head is not None

    def layers_computed(self, classifier: int) -> int:
        """Return how many layers must be computed for a head's logits."""
        heads = [layer for layer in range(len(self.architecture)) if self._has_classifier(layer)]
        return heads[classifier] + 1

    def compute(self, layer: int, activations: Activations) -> tuple[Activations, Tensor | None]:
        """Return what leaves a layer, and the logits of its head, (B, C), where it has one."""
        part = self.network.parts()[layer]
        shortcut = open_shortcut(part.spec, activations)
        activations = close_block(part.spec, part(activations.features), shortcut)
        logits = None if part.head is None else part.logits(activations.features)
        return activations, logits
