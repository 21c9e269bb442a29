"""The layer in float64 NumPy: loops over the kernel, formulas as DeeperForward writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayff.models.architecture import LayerSpec

Array = NDArray[np.float64]


def patches(x: Array, kernel: int, stride: int) -> Iterator[tuple[int, int, Array]]:
    """Yield, for each tap (i, j) of the kernel, the input pixel of every output pixel."""
    edge = kernel // 2
    padded = np.pad(x, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
    height = (x.shape[2] - 1) // stride + 1
    width = (x.shape[3] - 1) // stride + 1
    for i in range(kernel):
        for j in range(kernel):
            rows = slice(i, i + stride * height, stride)
            columns = slice(j, j + stride * width, stride)
            yield i, j, padded[:, :, rows, columns][:, :, :height, :width]


def convolution(x: Array, weight: Array, stride: int) -> Array:
    return sum(
        np.einsum("bkhw,ok->bohw", patch, weight[:, :, i, j])
        for i, j, patch in patches(x, weight.shape[2], stride)
    )


def average_pool(x: Array) -> Array:
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def groups(h: Array, num_classes: int) -> list[Array]:
    each = h.shape[1] // num_classes
    return [h[:, c * each : (c + 1) * each] for c in range(num_classes)]


def goodness(h: Array, num_classes: int) -> Array:
    return np.stack([group.mean(axis=(1, 2, 3)) for group in groups(h, num_classes)], axis=1)


def group_norm(h: Array, num_classes: int) -> Array:
    def norm(group: Array) -> Array:
        mean = group.mean(axis=(1, 2, 3), keepdims=True)
        variance = ((group - mean) ** 2).mean(axis=(1, 2, 3), keepdims=True)
        return (group - mean) / np.sqrt(variance + 1e-5)

    return np.concatenate([norm(group) for group in groups(h, num_classes)], axis=1)


def softmax(logits: Array) -> Array:
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


@dataclass
class Step:
    """Results of a layer's step with one batch."""

    h: Array
    goodness: Array
    features: Array
    loss: float
    gradient: Array


def step(
    x: Array,
    weight: Array,
    labels: list[int],
    spec: LayerSpec,
    num_classes: int,
    mask: Array | float = 1.0,
    keep: float = 1.0,
) -> Step:
    """Compute forward pass and the gradient of the loss at the weights."""
    if spec.pool:
        x = average_pool(x)
    h = mask * np.maximum(convolution(x, weight, spec.stride), 0) / keep
    logits = goodness(h, num_classes)
    batch = len(labels)
    share = softmax(logits)
    loss = -np.log(share[range(batch), labels]).mean()

    per_group = h[0].size // num_classes
    residual = share - np.eye(num_classes)[labels]
    per_channel = np.repeat(residual, h.shape[1] // num_classes, axis=1)[:, :, None, None]
    at_convolution = np.where(h > 0, per_channel / (batch * per_group) / keep, 0)
    gradient = np.zeros_like(weight)
    for i, j, patch in patches(x, spec.kernel_size, spec.stride):
        gradient[:, :, i, j] = np.einsum("bohw,bkhw->ok", at_convolution, patch)
    return Step(h, logits, group_norm(h, num_classes), float(loss), gradient)
