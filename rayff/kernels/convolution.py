"""The backends of a convolution: the same numbers up to rounding, at different speeds.

All take and return channels-last tensors; none computes the gradient of the input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rayff.config.kernels import Kernels
from rayff.kernels import amx, gpu, winograd
from rayff.kernels.device_class import CPU_CLASSES, device_class
from rayff.models.architecture import LayerSpec


def backends(spec: LayerSpec, device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """Return the backends that can compute a layer on a device, torch's own first."""
    own = device_class(device)
    found = ("unfold",) if must_unfold(spec, device, dtype) else ("conv", "unfold")
    others = ("winograd", "amx")
    return (*found, *(name for name in others if can_compute(name, spec, own, dtype)))


def can_compute(backend: str, spec: LayerSpec, device_class: str, dtype: torch.dtype) -> bool:
    """Return whether devices of a class can compute a layer with a backend."""
    if backend == "winograd":
        compiled = device_class in CPU_CLASSES[1:]
        return compiled and dtype in winograd.DTYPES and winograd.fits(spec)
    if backend == "amx":
        return device_class == "cpu-amx" and dtype == torch.bfloat16
    return True  # where torch's convolution is not exact, it unfolds


def must_unfold(spec: LayerSpec, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether torch's gradient of the weights cannot be relied on.

    That of a 1x1 kernel, which is a matrix product as it is, writes past the end of its memory
    with channels-last tensors of some sizes (seen in torch 2.14). And of float32 with few channels
    cuDNN multiplies the ten bits of tf32, even where that is forbidden (3 channels, 5x5 kernel:
    an error of 7e-4; seen with torch 2.11 on an H200).
    """
    few = device.type == "cuda" and dtype == torch.float32 and spec.in_channels < 8
    return spec.kernel_size == 1 or few


def unfold(x: Tensor, spec: LayerSpec) -> Tensor:
    """Return the patches of x (B, K', H, W) as rows, (B * H' * W', R * R * K')."""
    if spec.kernel_size > 1 and gpu.usable(x):
        return gpu.unfold(x, spec)
    images, kernel, padding = x.permute(0, 2, 3, 1), spec.kernel_size, spec.kernel_size // 2
    if padding:
        images = F.pad(images, (0, 0, padding, padding, padding, padding))
    patches = images.unfold(1, kernel, spec.stride).unfold(2, kernel, spec.stride)
    return patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, kernel * kernel * spec.in_channels)


class Convolution:
    """The convolution of one layer with one batch, and the gradient of its weights.

    Args:
        spec: the layer, whose pool x has passed.
        kernels: how both are computed.
        x: (B, K', H, W).
        weight: (K, K', R, R), in the format of x.
    """

    def __init__(self, spec: LayerSpec, kernels: Kernels, x: Tensor, weight: Tensor) -> None:
        self.spec = spec
        if must_unfold(spec, x.device, x.dtype):
            kernels = Kernels(*("unfold" if each == "conv" else each for each in kernels.backends))
        self.kernels = kernels
        self.x = x
        self.weight = weight
        self.columns = unfold(x, spec) if "unfold" in kernels.backends else None
        self.operands = x, weight
        """As torch's own convolution gets them: on a GPU with the gaps of their memory."""
        if "conv" in kernels.backends and gpu.usable(x, weight):
            self.operands = gpu.with_gaps(x), gpu.filters_with_gaps(weight, x)

    def forward(self) -> Tensor:
        """Return the output, (B, K, H', W')."""
        spec = self.spec
        if self.kernels.forward == "winograd":
            return winograd.convolve(self.x, self.weight, spec)
        if self.kernels.forward == "amx":
            return amx.convolve(self.x, self.weight, spec)
        if self.kernels.forward == "conv":
            y = F.conv2d(*self.operands, None, spec.stride, spec.kernel_size // 2)
            return y[:, : spec.out_channels]
        assert self.columns is not None, "unfolded in the constructor"
        y = self.columns @ self.weight.permute(0, 2, 3, 1).reshape(spec.out_channels, -1).T
        return y.view(len(self.x), spec.out_size, spec.out_size, -1).permute(0, 3, 1, 2)

    def weight_gradient(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the weights from that of the output, (B, K, H', W')."""
        spec, kernel = self.spec, self.spec.kernel_size
        if self.kernels.gradient == "winograd":
            return winograd.weight_gradient(self.x, gradient, spec)
        if self.kernels.gradient == "amx":
            return amx.weight_gradient(self.x, gradient, spec)
        if self.kernels.gradient == "conv":
            return self._torch_gradient(gradient)[: spec.out_channels, : spec.in_channels]
        assert self.columns is not None, "unfolded in the constructor"
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, spec.out_channels)
        found = rows.T @ self.columns
        return found.view(-1, kernel, kernel, spec.in_channels).permute(0, 3, 1, 2)

    def _torch_gradient(self, gradient: Tensor) -> Tensor:
        if gpu.usable(gradient):
            gradient = gpu.with_gaps(gradient)
        x, filters = self.operands
        filters = filters[: gradient.shape[1]]
        stride, padding = [self.spec.stride] * 2, [self.spec.kernel_size // 2] * 2
        return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
            *(gradient, x, filters, None, stride, padding, [1, 1], False, [0, 0], 1),
            [False, True, False],
        )[1]
