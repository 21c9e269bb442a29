"""Readouts: how the logits of all layers become one classifier.

- `window`: the sum over layers first..last, the window with the best validation accuracy (SIP,
  signal integrating and pruning; DeeperForward, section 3.4);
- `last`: the last layer alone;
- `fusion`: a multinomial logistic regression on the logits of all layers (Fusion).

Shapes: L layers, B images of a batch, N of a split, C classes. Entry [first, last] of an (L, L)
matrix is for the sum of layers first..last; entries below the diagonal are zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayff.learning.calibration import fit_temperature
from rayff.learning.fusion import Fusion

ReadoutName = Literal["window", "last", "fusion"]
READOUTS: tuple[ReadoutName, ...] = get_args(ReadoutName)

MAX_SAMPLE_BYTES = 32 * 2**20
"""Size of the validation logits that readouts are fitted on, at most."""


@dataclass(frozen=True, kw_only=True)
class Temperatures:
    """What logits are divided by, so that their softmax is a probability."""

    window: tuple[float, ...]
    """Of the sum of the window's layers first..d, for each d from first to last."""
    last: float
    """Of the last layer alone."""


@dataclass(frozen=True, kw_only=True)
class Readouts:
    """The readouts of a network, with all that was fitted on validation images."""

    window: tuple[int, int]
    """First and last layer of the sum."""
    temperatures: Temperatures | None = None
    """None where they were not fitted; 1 is used then. Fusion needs none: it is fitted by
    likelihood."""
    fusion: Fusion | None = None

    def with_window(self, window: tuple[int, int]) -> Readouts:
        """Return them with a window whose temperatures, unless it is the same, are not known."""
        same = window == self.window
        return replace(self, window=window, temperatures=self.temperatures if same else None)


def window_hits(logits: Tensor, labels: Tensor) -> NDArray[np.int64]:
    """Count the images that each window classifies correctly.

    Args:
        logits: of every layer, (L, B, C).
        labels: classes, (B,).

    Returns:
        (L, L) counts.
    """
    num_layers = len(logits)
    hits = torch.zeros(num_layers, num_layers, dtype=torch.int64, device=logits.device)
    for first in range(num_layers):
        summed = logits[first:].cumsum(dim=0)
        hits[first, first:] = (summed.argmax(dim=2) == labels).sum(dim=1)
    return hits.cpu().numpy()


def best_window(hits: NDArray[np.int64]) -> tuple[int, int]:
    """Return (first, last) of the window with most hits; on a tie the shallowest.

    The shallowest is the one that ends first, and of those the one that starts first.
    """
    windows = ((first, last) for last in range(len(hits)) for first in range(last + 1))
    return max(windows, key=lambda window: hits[window])


def sample_size(num_layers: int, num_classes: int) -> int:
    """Return how many validation images readouts are fitted on, at most."""
    bytes_per_image = num_layers * num_classes * torch.float32.itemsize
    return max(1, MAX_SAMPLE_BYTES // bytes_per_image)


def fit_temperatures(
    logits: NDArray[np.float32], labels: NDArray[np.int64], window: tuple[int, int]
) -> Temperatures | None:
    """Fit the temperatures of a window's sums and of the last layer.

    Args:
        logits: of every layer on validation images, (L, N, C).
        labels: classes, (N,).
        window: first and last layer of the sum.

    Returns:
        the temperatures; None where a logit is not finite.
    """
    if not np.isfinite(logits).all():
        return None
    first, last = window
    sums = logits[first : last + 1].cumsum(axis=0, dtype=np.float64)
    return Temperatures(
        window=tuple(fit_temperature(each, labels) for each in sums),
        last=fit_temperature(logits[-1].astype(np.float64), labels),
    )
