"""The channel-wise convolution layer (CW-Conv; DeeperForward, section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayff.config.kernels import Kernels
from rayff.learning.generators import DropoutGenerator, Share, weight_generator
from rayff.models.architecture import LayerSpec


class CWConv(nn.Module):
    """Convolution, ReLU and dropout, whose channel groups vote for the classes.

    Args:
        spec: channels, kernel, stride and pool.
        num_classes: C; the output channels split into C groups.
        dropout: share of activations that training sets to zero, in steps of 1/256.
        seed: the run's seed; with the layer's number it decides weights and dropout.
        dtype: number format of the convolution and of the features; weights, goodness and
            statistics stay in the weights' own format.
    """

    def __init__(
        self,
        spec: LayerSpec,
        num_classes: int,
        *,
        dropout: float = 0.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.num_classes = num_classes
        self.dropped = round(dropout * 256)
        self.seed = seed
        self.dtype = dtype
        self.kernels = Kernels()
        weight = torch.empty(spec.weight_shape)
        generator = weight_generator(seed, spec.index)
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu", generator=generator)
        self.weight = nn.Parameter(weight)

    def dropout_generator(self, share: Share) -> DropoutGenerator:
        """Return where the random bytes of dropout come from with a share of a batch."""
        return DropoutGenerator(seed=self.seed, layer_index=self.spec.index, share=share)

    def dropout_state(self, share: Share, device: torch.device) -> Tensor:
        """Return the state of that stream for the device's kernels, in the host's memory."""
        spec = self.spec
        return self.dropout_generator(share).state(spec.out_channels * spec.out_size**2, device)

    def activation(self, x: Tensor, share: Share | None = None) -> Tensor:
        """Return h = dropout(relu(conv(x))), (B, K, H, W); no dropout where `share` is None."""
        x = x.detach().to(self.dtype)
        if self.spec.pool:
            x = F.avg_pool2d(x, 2)
        padding = self.spec.kernel_size // 2
        h = F.relu(F.conv2d(x, self.weight.to(self.dtype), None, self.spec.stride, padding))
        h = h.to(self.weight.dtype)
        if share is None or self.dropped == 0:
            return h
        kept = self.dropout_generator(share).keep_mask(h, self.dropped)
        return h * kept.to(h.dtype).mul_(256 / (256 - self.dropped))

    def goodness(self, h: Tensor) -> Tensor:
        """Return the mean of each class's group of channels over all pixels, (B, C)."""
        return h.reshape(len(h), self.num_classes, -1).mean(dim=2)

    def features(self, h: Tensor) -> Tensor:
        """Return what the next layer receives: h normalised in each group, detached."""
        return F.group_norm(h.detach(), self.num_classes).to(self.dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, K, H, W) and goodness (B, C), without dropout."""
        h = self.activation(x)
        return self.features(h), self.goodness(h)
