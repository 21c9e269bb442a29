"""The same network trained end to end: linear heads, and gradients through all layers.

With one head on the last layer this is backpropagation; with one on every layer, whose losses
are added, backpropagation with deep supervision (Lee et al., AISTATS 2015): the losses of
Forward-Forward with the gradients let through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rayff.learning.chain import ForwardForward, join, normalise
from rayff.learning.generators import Share, head_generator
from rayff.learning.layer import CWConv
from rayff.models.architecture import Architecture, LayerSpec


class EndToEndLayer(CWConv):
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
            generator = head_generator(seed, spec.index)
            nn.init.kaiming_normal_(self.head.weight, nonlinearity="linear", generator=generator)
            nn.init.zeros_(self.head.bias)

    def outward(self, x: Tensor, share: Share | None) -> Tensor:
        """Return the normalised features, (B, K, H, W), in the format of `x`, on the tape."""
        if self.spec.pool:
            x = F.avg_pool2d(x, 2)
        weight = self.weight.to(x.dtype)
        h = F.relu(F.conv2d(x, weight, None, self.spec.stride, self.spec.kernel_size // 2))
        if share is None:
            h = F.dropout(h, self.dropped / 256, self.training)
        elif self.training and self.dropped:
            kept = self.dropout_generator(share).keep_mask(h, self.dropped)
            h = h * kept.to(h.dtype).mul_(256 / (256 - self.dropped))
        return F.group_norm(h, self.num_classes)

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
        last = architecture[len(architecture) - 1]
        self.layers = nn.ModuleList(
            EndToEndLayer(
                spec,
                architecture.num_classes,
                dropout=dropout,
                seed=seed,
                has_head=deep_supervision or spec is last,
            )
            for spec in architecture.layers
        )

    def parts(self) -> Sequence[EndToEndLayer]:
        """Return the layers with their own type."""
        return [layer for layer in self.layers if isinstance(layer, EndToEndLayer)]

    def forward(self, features: Tensor, share: Share | None = None) -> Tensor:
        """Return the logits of every head, (heads, B, C), of normalised images (B, K, 32, 32).

        Args:
            features: the images.
            share: which images of which batch they are; it finds the dropout, which is torch's
                own without it.
        """
        return torch.stack(list(self.votes(features, share)))

    def votes(self, features: Tensor, share: Share | None = None) -> Iterator[Tensor]:
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
            features = layer.outward(features, share)
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


class EndToEnd(nn.Module):
    """A network trained by backpropagation, ready to classify.

    Args:
        network: all layers.
        window: first and last head whose logits are summed.
        class_names: one a class.
        dtype: number format of the features.
    """

    def __init__(
        self,
        network: Backpropagation,
        window: tuple[int, int],
        class_names: tuple[str, ...],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.network = network
        self.window = window
        self.class_names = class_names
        self.dtype = dtype

    @property
    def architecture(self) -> Architecture:
        """All layers."""
        return self.network.architecture

    @property
    def first_weight(self) -> Tensor:
        """The filters of the first layer, (K, channels, height, width)."""
        return self.network.parts()[0].weight

    @property
    def num_classifiers(self) -> int:
        """Heads that say a class: of every layer, or of the last alone."""
        return sum(layer.head is not None for layer in self.network.parts())

    @property
    def depth(self) -> int:
        """Layers that must be computed to classify."""
        return self._depth(self.window[1])

    @torch.no_grad()
    def goodness(self, images: Tensor, num_classifiers: int | None = None) -> Tensor:
        """Return the logits of the first `num_classifiers` heads, (heads, B, C).

        `images` are uint8, (B, K, 32, 32).
        """
        return self.network(normalise(images, self.dtype))[:num_classifiers]  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Return the summed logits of the window, (B, C)."""
        first, last = self.window
        return self.goodness(images, last + 1)[first:].sum(dim=0)

    @torch.no_grad()
    def early_exit(self, image: Tensor, threshold: float) -> tuple[Tensor, int]:
        """Classify one image with as few layers as are sure enough; see ForwardForward."""
        first, last = self.window
        total = torch.zeros(self.architecture.num_classes, device=image.device)
        for classifier, logits in enumerate(
            self.network.votes(normalise(image[None], self.dtype))
        ):
            if classifier >= first:
                total = total + logits[0]
            if classifier == last or (
                classifier >= first and total.softmax(dim=0).max() >= threshold
            ):
                break
        return total.softmax(dim=0), self._depth(classifier)

    def _depth(self, classifier: int) -> int:
        with_head = [i for i, layer in enumerate(self.network.parts()) if layer.head is not None]
        return with_head[classifier] + 1


Classifier = ForwardForward | EndToEnd
"""A trained network, however it has learnt."""
