"""The channel-wise convolution layer (CW-Conv; DeeperForward, section 3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayff.config.kernels import Kernels
from rayff.config.local_loss import GOODNESS, LossConfig
from rayff.kernels.dropout_bits import drawn_bytes
from rayff.learning.generators import Share, dropout_state, weight_generator
from rayff.learning.local_layer import LocalLayer
from rayff.models.architecture import LayerSpec


def norm_groups(channels: int, num_classes: int) -> int:
    """Return the groups that features are normalised in: one a class where the channels split so.

    Otherwise the largest number below that does, of groups of four channels at least: a group of
    one channel would lose how active it is.
    """
    if channels % num_classes == 0:
        return num_classes
    most = max(1, min(num_classes, channels // 4))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


class ConvLayer(nn.Module):
    """The weights of a layer: convolution, ReLU and dropout, and the features behind them.

    Args:
        spec: channels, kernel, stride and pool.
        num_classes: C; the output channels split into C groups.
        dropout: share of activations that training sets to zero, in steps of 1/256.
        seed: the run's seed; with the layer's number it decides weights and dropout.
        dtype: number format of the convolution and of the features; weights, logits and
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
        self.groups = norm_groups(spec.out_channels, num_classes)
        self.dropped = round(dropout * 256)
        self.seed = seed
        self.dtype = dtype
        self.kernels = Kernels()
        weight = torch.empty(spec.weight_shape)
        if not weight.is_meta:  # built for its shapes alone
            generator = weight_generator(seed, spec.index)
            nn.init.kaiming_normal_(
                weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
        self.weight = nn.Parameter(weight)

    def dropout_state(self, share: Share, device: torch.device) -> Tensor:
        """Return the state of the layer's dropout with a share of a batch, in host memory."""
        elements = self.spec.out_channels * self.spec.out_size**2
        return dropout_state(self.seed, self.spec.index, share, elements, device)

    def drop(self, h: Tensor, state: Tensor | None) -> Tensor:
        """Return h (B, K, H, W) with dropout; unchanged where `state` is None.

        An element is dropped where its byte is below `dropped`, with probability dropped / 256.
        """
        if state is None or self.dropped == 0:
            return h
        kept = (drawn_bytes(state, h.shape) >= self.dropped).permute(0, 3, 1, 2)
        return h * kept.to(h.dtype).mul_(256 / (256 - self.dropped))

    def activation(self, x: Tensor, dropout_state: Tensor | None = None) -> Tensor:
        """Return h = dropout(relu(conv(x))), (B, K, H, W), of detached features x."""
        x = x.detach().to(self.dtype)
        if self.spec.pool:
            x = F.avg_pool2d(x, 2)
        padding = self.spec.kernel_size // 2
        h = F.relu(F.conv2d(x, self.weight.to(self.dtype), None, self.spec.stride, padding))
        return self.drop(h.to(self.weight.dtype), dropout_state)

    def features(self, h: Tensor) -> Tensor:
        """Return what the next layer receives: h normalised in each group, detached."""
        return F.group_norm(h.detach(), self.groups).to(self.dtype)


class CWConv(ConvLayer, LocalLayer):
    """A convolution that learns from a local loss of its activation.

    Args:
        spec: channels, kernel, stride and pool.
        num_classes: C.
        loss: the local loss and its options.
        options: those of ConvLayer.
    """

    spec: LayerSpec

    def __init__(
        self, spec: LayerSpec, num_classes: int, *, loss: LossConfig = GOODNESS, **options: Any
    ) -> None:
        super().__init__(spec, num_classes, **options)
        self.add_loss(loss)

    def outputs(self, x: Tensor, dropout_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the activation and the features for the next layer, (B, K, H, W) each."""
        h = self.activation(x, dropout_state)
        return h, self.features(h)
