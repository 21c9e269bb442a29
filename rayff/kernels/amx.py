"""A convolution and its weight gradient by a processor's tile units (Intel AMX), in bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor

from rayff.config.errors import UserError
from rayff.kernels import native
from rayff.models.architecture import LayerSpec


def missing() -> str | None:
    """Return why the tile units cannot be used, in a clause, or None where they can."""
    if (why := native.missing()) is not None:
        return why
    if native.library().amx_permitted():
        return None
    return "the processor, the system or the C++ compiler has no AMX"


def convolve(x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    """Return the convolution of x (B, K', H, W) with weight (K, K', R, R), channels last.

    It lies in memory that this thread's next convolution uses again.
    """
    shape = (len(x), spec.out_size, spec.out_size, spec.out_channels)
    y = native.scratch("y", torch.bfloat16, *shape)
    _call("amx_forward", x, weight.permute(0, 2, 3, 1).contiguous(), y, spec)
    return y.permute(0, 3, 1, 2)


def weight_gradient(x: Tensor, gradient: Tensor, spec: LayerSpec) -> Tensor:
    """Return the gradient of the weights, (K, K', R, R), float32, channels last.

    Args:
        x: what was convolved, (B, K', H, W).
        gradient: of the loss at the convolution's output, (B, K, H, W).
        spec: the layer.
    """
    kernel = spec.kernel_size
    found = torch.empty(spec.out_channels, kernel, kernel, spec.in_channels)
    _call("amx_gradient", x, gradient.permute(0, 2, 3, 1).contiguous(), found, spec)
    return found.permute(0, 3, 1, 2)


def _call(name: str, x: Tensor, other: Tensor, result: Tensor, spec: LayerSpec) -> None:
    """Call a kernel with x, the weights or the gradient, and memory for what it prepares.

    Raises:
        UserError: there are no tile units here.
    """
    if (why := missing()) is not None:
        raise UserError(
            f"--kernels: layer {spec.index} cannot be computed with amx here ({why}); train where "
            "it can, or anew with other kernels"
        )
    images = x.permute(0, 2, 3, 1).contiguous()
    shape = (len(x), images.shape[1], spec.in_channels, spec.out_channels)
    numbers = (*shape, spec.kernel_size, spec.stride)
    memory = native.scratch("amx", torch.uint8, native.number("amx_room", *numbers))
    native.call(name, images, other, memory, result, *numbers)
