"""Calibration: temperatures that turn logits into probabilities, and how far those are off.

Shapes: N images, C classes, D depths at which a sum of layers may stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6
_MAX_STEPS = 100
_PRECISION = 1e-10


def fit_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the temperature T whose softmax(logits / T) is the most likely for the labels.

    The negative log-likelihood is convex in 1 / T: Newton's method, within bounds that close in
    by bisection. A label counts 1 - 1 / (N + 2) and the other classes share the rest, as in Platt
    (1999): a split without a mistake would otherwise ask for a temperature of zero.

    Args:
        logits: (N, C), finite.
        labels: classes, (N,).

    Returns:
        the temperature; 1 where the logits of each image are all equal.
    """
    num_images, num_classes = logits.shape
    # images last: sums over a few classes are slow along the rows of memory
    z = np.ascontiguousarray(logits.T) - logits.max(axis=1)
    doubt = 1 / (num_images + 2)
    others = doubt / (num_classes - 1)
    true = z[labels, np.arange(num_images)].sum()
    target = float((1 - doubt - others) * true + others * z.sum())
    low, high, inverse = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE, 1.0
    for _ in range(_MAX_STEPS):
        weighted = np.exp(inverse * z)
        weighted /= weighted.sum(axis=0)
        weighted *= z
        mean = weighted.sum(axis=0)
        slope = float(mean.sum()) - target
        curvature = float((weighted * z).sum() - (mean * mean).sum())
        if slope == 0:
            break
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else low
        if not low < step < high:
            step = float(np.sqrt(low * high))
        if abs(step - inverse) <= _PRECISION * inverse:
            break
        inverse = step
    return 1 / inverse


@dataclass(frozen=True, kw_only=True, eq=False)
class Reliability:
    """Probability against accuracy in bins of equal width; probabilities and shares are 0 to 1."""

    counts: NDArray[np.int64]
    """Images of each bin, (bins,)."""
    probability: NDArray[np.float64]
    """Mean probability of the predicted class in each bin, (bins,); 0 where a bin is empty."""
    accuracy: NDArray[np.float64]
    """Share of each bin that is classified correctly, (bins,); 0 where it is empty."""

    @property
    def mean_probability(self) -> float:
        """Mean probability of the predicted class."""
        return float((self.counts * self.probability).sum() / self.counts.sum())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: the mean gap, weighted by images (Guo et al., 2017)."""
        gaps = np.abs(self.accuracy - self.probability)
        return float((self.counts * gaps).sum() / self.counts.sum())


def reliability(
    probability: NDArray[np.floating], correct: NDArray[np.bool_], bins: int = NUM_BINS
) -> Reliability:
    """Sort predictions into bins by the probability of the predicted class.

    Args:
        probability: of the predicted class, (N,), 0 to 1.
        correct: whether it is the true one, (N,).
        bins: number of bins; bin i is the interval (i / bins, (i + 1) / bins].
    """
    values = probability.astype(np.float64)
    place = np.clip(np.ceil(values * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    filled = np.maximum(counts, 1)
    return Reliability(
        counts=counts,
        probability=np.bincount(place, values, minlength=bins) / filled,
        accuracy=np.bincount(place, correct, minlength=bins) / filled,
    )


@dataclass(frozen=True, kw_only=True)
class EarlyExit:
    """What early exit gives at one threshold."""

    threshold: float
    mean_layers: float
    """Layers computed, mean over the images."""
    accuracy: float
    """Share of the images that is classified correctly, 0 to 1."""


def early_exits(
    probability: NDArray[np.floating],
    correct: NDArray[np.bool_],
    layers: Sequence[int],
    thresholds: Sequence[float],
) -> list[EarlyExit]:
    """Return accuracy and cost of early exit at several thresholds.

    Args:
        probability: of the class predicted at each depth, (D, N), 0 to 1.
        correct: whether it is the true one, (D, N).
        layers: layers computed at each depth, (D,).
        thresholds: an image stops at the first depth that reaches it, else at the last one.
    """
    found = []
    for threshold in thresholds:
        reached = probability >= threshold
        reached[-1] = True
        stop = reached.argmax(axis=0)
        found.append(
            EarlyExit(
                threshold=threshold,
                mean_layers=float(np.asarray(layers)[stop].mean()),
                accuracy=float(correct[stop, np.arange(len(stop))].mean()),
            )
        )
    return found
