"""Choosing a layer's convolution backends by a timing on this machine (`--autotune`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rayff.config.kernels import Kernels
from rayff.kernels import gpu
from rayff.kernels.convolution import Convolution, backends
from rayff.kernels.timing import seconds
from rayff.models.architecture import Architecture, LayerSpec

_MARGIN = 1.1
"""How much faster than the first backend another one must be: the others load caches and memory
more, which neighbouring layers and stages want too."""
_REPEATS = 3
_MAX_CPU_IMAGES = 128
_MAX_CPU_PRODUCTS = 2e10
"""Multiply-adds of a convolution that is timed: a fifth of a second to half a second of a core."""
_MIN_CPU_IMAGES = 16

Shape = tuple[int, ...]
"""Kernel, stride, input channels, output channels and input size of a convolution."""


def autotune(
    architecture: Architecture,
    images: int,
    device: torch.device,
    dtype: torch.dtype,
    repeats: int = _REPEATS,
) -> tuple[Kernels, ...]:
    """Return the fastest kernels of each layer; layers of one shape are timed once.

    Args:
        architecture: the layers.
        images: of a batch.
        device: where to time.
        dtype: of the activations.
        repeats: rounds of which the median counts.
    """
    chosen: dict[Shape, Kernels] = {}
    for spec in architecture.convolutions:
        shape = shape_of(spec)
        if shape not in chosen:
            chosen[shape] = fastest_kernels(spec, images, device, dtype, repeats)
    return tuple(chosen[shape_of(spec)] for spec in architecture.convolutions)


def shape_of(spec: LayerSpec) -> Shape:
    """Return what decides the speed of a layer's convolution, whatever its place in a network."""
    size = spec.in_size // 2 if spec.pool else spec.in_size
    return spec.kernel_size, spec.stride, spec.in_channels, spec.out_channels, size


def timed_images(spec: LayerSpec, images: int, device: torch.device) -> int:
    """Return with how many images a layer is timed: fewer than a batch where that takes long."""
    if device.type != "cpu":
        return images
    images = min(images, _MAX_CPU_IMAGES)
    while images > _MIN_CPU_IMAGES:
        if images * spec.num_products <= _MAX_CPU_PRODUCTS:
            break
        images //= 2
    return images


def fastest_kernels(
    spec: LayerSpec, images: int, device: torch.device, dtype: torch.dtype, repeats: int = _REPEATS
) -> Kernels:
    """Return the fastest pair of backends; if both unfold, they share the unfolded input.

    The backends take turns and medians count, so that one disturbance does not decide.
    """
    known = backends(spec, device, dtype)
    if len(known) == 1:
        return Kernels(*known * 2)
    images = timed_images(spec, images, device)
    *_, size = shape_of(spec)
    x = torch.randn((images, spec.in_channels, size, size), dtype=dtype, device=device)
    x = x.to(memory_format=torch.channels_last)
    weight = torch.randn(spec.weight_shape, dtype=dtype, device=device)
    weight = weight.to(memory_format=torch.channels_last)
    if gpu.usable(x):
        x = gpu.pitched(x)
    rounds: dict[str, list[Sequence[float]]] = {backend: [] for backend in known}
    for backend in known * (1 + repeats):
        rounds[backend].append(_time_backend(spec, backend, x, weight))
    # of each backend, without its first round: unfolding, forward and gradient
    usual = {backend: np.median(each[1:], axis=0) for backend, each in rounds.items()}
    for backend in known[1:]:
        usual[backend][1:] *= _MARGIN

    def pair_s(pair: Kernels) -> float:
        unfold_s = usual["unfold"][0] if "unfold" in pair.backends else 0.0
        return float(unfold_s + usual[pair.forward][1] + usual[pair.gradient][2])

    return min((Kernels(a, b) for a in known for b in known), key=pair_s)


def _time_backend(
    spec: LayerSpec, backend: str, x: Tensor, weight: Tensor
) -> tuple[float, float, float]:
    """Return the seconds of unfolding, of the forward pass and of the gradient."""
    made: list[Convolution] = []
    outputs: list[Tensor] = []

    def unfold() -> None:
        made.append(Convolution(spec, Kernels(backend, backend), x, weight))

    unfold_s = seconds(unfold, x.device)
    forward_s = seconds(lambda: outputs.append(made[-1].forward()), x.device)
    gradient_s = seconds(lambda: made[-1].weight_gradient(outputs[-1]), x.device)
    return unfold_s, forward_s, gradient_s
