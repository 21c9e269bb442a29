"""Fits the readouts of an epoch to the logits that its evaluation returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rayff.data.images import Split
from rayff.data.order import sample
from rayff.engine.commands import Report
from rayff.learning.fusion import Fusion, fit_fusion
from rayff.learning.readout import Readouts, fit_temperatures

MAX_LOGITS = 2**22
"""Logits that temperatures are fitted on, at most: more take longer and change little."""


@dataclass
class ReadoutFit:
    """Collects validation logits, and counts the hits of fusion on test images as they come."""

    fusion: Fusion | None = None
    """Fitted with the first test logits: the validation images come before them."""
    fusion_hits: int = 0
    """Test images that it classifies correctly."""
    _logits: list[NDArray[np.float32]] = field(default_factory=list)
    _labels: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, split: Split, report: Report) -> None:
        """Add the last stage's report of an evaluation, with logits or without."""
        if not report.logits:
            return
        if split == "valid":
            self._logits += [logits for logits in report.logits if logits.size]
            self._labels += [labels for labels in report.labels if labels.size]
            return
        if self.fusion is None:
            self.fusion = fit_fusion(*self._joined())
        if self.fusion is not None:
            for logits, labels in zip(report.logits, report.labels, strict=True):
                self.fusion_hits += self.fusion.hits(logits, labels)

    def readouts(self, window: tuple[int, int]) -> Readouts | None:
        """Return what was fitted, with that window; None where the epoch gave no logits."""
        if not self._logits:
            return None
        logits, labels = self._joined()
        num_layers, _, num_classes = logits.shape
        rows = sample(labels, max(1, MAX_LOGITS // (num_layers * num_classes)))
        temperatures = fit_temperatures(logits[:, rows], labels[rows], window)
        return Readouts(window=window, temperatures=temperatures, fusion=self.fusion)

    def _joined(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return logits, (L, N, C), and labels, (N,), of the images to fit to."""
        return np.concatenate(self._logits, axis=1), np.concatenate(self._labels)
