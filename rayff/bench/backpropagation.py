"""The same network trained end to end: one loss on a linear head, gradients through all layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rayff.learning.chain import join
from rayff.learning.layer import CWConv
from rayff.spec import Architecture, LayerSpec


class Backpropagation(nn.Module):
    """Convolution, ReLU, dropout and group norm by layer, with shortcuts; a head on the means.

    Args:
        architecture: the whole network.
        dropout: share of activations that training sets to zero.
        seed: of the first weights, which are those of a Forward-Forward network.
        checkpointing: keep the inputs of blocks alone, and compute the rest again.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        dropout: float,
        seed: int = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.dropout = dropout
        self.checkpointing = checkpointing
        classes = architecture.num_classes
        self.weights = nn.ParameterList(
            CWConv(spec, classes, seed=seed).weight for spec in architecture.layers
        )
        self.head = nn.Linear(architecture.layers[-1].feature_channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits, (B, C), of normalised images (B, K, 32, 32)."""
        for block in blocks(self.architecture):
            if self.checkpointing and self.training:
                features = checkpoint(self._block, features, block, use_reentrant=False)
            else:
                features = self._block(features, block)
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits

    def _block(self, features: Tensor, block: Sequence[int]) -> Tensor:
        entered = features
        for position in block:
            spec = self.architecture[position]
            features = self._layer(spec, self.weights[position], features)
            if spec.join != "none":
                features = join(features, entered, spec)
        return features

    def _layer(self, spec: LayerSpec, weight: Tensor, x: Tensor) -> Tensor:
        if spec.pool:
            x = F.avg_pool2d(x, 2)
        h = F.relu(F.conv2d(x, weight, None, spec.stride, spec.kernel_size // 2))
        h = F.dropout(h, self.dropout, self.training)
        return F.group_norm(h, self.architecture.num_classes)


def blocks(architecture: Architecture) -> Iterator[list[int]]:
    """Yield the positions of the layers of each block; a layer outside of all is its own."""
    block: list[int] = []
    for position, spec in enumerate(architecture.layers):
        block.append(position)
        inside = spec.shortcut_channels > 0 and spec.join == "none"
        if not inside or position + 1 == len(architecture):
            yield block
            block = []
