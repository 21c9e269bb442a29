"""Fusion: a multinomial logistic regression on the logits of all layers.

Shapes: L layers, N images, C classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

PENALTY = 20.0
"""Weight of half the squared weights against the log-likelihood of all images: that of 20 images.
The weights are those of standardised inputs."""
MAX_WEIGHTS = 10**6
"""Networks of more layers and classes get no fusion: fitting it would take minutes."""
_MAX_STEPS = 200
_GRADIENT = 1e-6
_HISTORY = 50
_VARIES = 1e-4
"""Deviation of an input, as a part of the largest one, below which it counts as constant."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fusion:
    """A linear classifier of the logits of all layers."""

    weight: NDArray[np.float32]
    """(C, L * C): a column for each layer and class, the classes of layer 0 first."""
    bias: NDArray[np.float32]
    """(C,)."""

    def hits(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> int:
        """Count the images that it classifies correctly.

        Args:
            logits: of every layer, (L, N, C).
            labels: classes, (N,).
        """
        scores = fusion_inputs(logits) @ self.weight.T.astype(np.float64) + self.bias
        return int((scores.argmax(axis=1) == labels).sum())


def can_fuse(num_layers: int, num_classes: int) -> bool:
    """Return whether a network has a fusion: it has several layers, and not too many classes."""
    return num_layers > 1 and num_layers * num_classes**2 <= MAX_WEIGHTS


def fusion_inputs(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the logits of all layers, (L, N, C), side by side, (N, L * C)."""
    inputs: NDArray[np.float64] = logits.astype(np.float64).transpose(1, 0, 2)
    return inputs.reshape(len(inputs), -1)


def fit_fusion(
    logits: NDArray[np.float32], labels: NDArray[np.int64], penalty: float = PENALTY
) -> Fusion | None:
    """Fit the regression by L-BFGS in float64, in one thread: it repeats bit for bit.

    Args:
        logits: of every layer on validation images, (L, N, C).
        labels: classes, (N,).
        penalty: weight of half the squared weights; the biases are free.

    Returns:
        the classifier of the logits as they come; None where a logit is not finite.
    """
    if not np.isfinite(logits).all():
        return None
    inputs = fusion_inputs(logits)
    num_classes = logits.shape[2]
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0)
    # rounding alone makes a constant input vary, and must not be magnified
    scale = np.where(deviation > _VARIES * deviation.max(), deviation, 1.0)
    with _one_thread(), torch.enable_grad():
        weight, bias = _minimise(
            torch.from_numpy((inputs - mean) / scale),
            torch.from_numpy(labels),
            num_classes,
            penalty / len(labels),
        )
    unscaled = weight.numpy() / scale
    return Fusion(
        weight=unscaled.astype(np.float32),
        bias=(bias.numpy() - unscaled @ mean).astype(np.float32),
    )


class _Lbfgs(torch.optim.LBFGS):
    """Without torch's compiler, which the method of the base class takes 2 s to import."""

    add_param_group = inspect.unwrap(torch.optim.LBFGS.add_param_group)


def _minimise(
    inputs: Tensor, labels: Tensor, num_classes: int, decay: float
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the least mean cross entropy plus decay / 2 * |weight|^2."""
    weight = inputs.new_zeros(num_classes, inputs.shape[1], requires_grad=True)
    bias = inputs.new_zeros(num_classes, requires_grad=True)
    optimizer = _Lbfgs(
        [weight, bias],
        max_iter=_MAX_STEPS,
        tolerance_grad=_GRADIENT,
        tolerance_change=0,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        weight.grad = bias.grad = None
        loss = F.cross_entropy(F.linear(inputs, weight, bias), labels)
        loss = loss + decay / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute in one thread: the order of its sums depends on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
