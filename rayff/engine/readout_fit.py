"""Fits the readouts of an epoch to the logits that its evaluation returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rayff.data.images import Split
from rayff.engine.commands import Report
from rayff.learning.fusion import Fusion, fit_fusion
from rayff.learning.readout import Readouts, fit_temperatures


@dataclass
class ReadoutFit:
    """Collects validation logits, and counts the hits of fusion on test images as they come.

    Args:
        num_images: validation images to fit to; the first ones, whatever the chunks are.
    """

    num_images: int = 0
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
            self._logits += report.logits
            self._labels += report.labels
            return
        if self.fusion is None:
            self.fusion = fit_fusion(*self._sample())
        if self.fusion is not None:
            for logits, labels in zip(report.logits, report.labels, strict=True):
                self.fusion_hits += self.fusion.hits(logits, labels)

    def readouts(self, window: tuple[int, int]) -> Readouts | None:
        """Return what was fitted, with that window; None where the epoch gave no logits."""
        if not self._logits:
            return None
        temperatures = fit_temperatures(*self._sample(), window)
        return Readouts(window=window, temperatures=temperatures, fusion=self.fusion)

    def _sample(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return logits, (L, N, C), and labels, (N,), of the images to fit to."""
        logits, labels = np.concatenate(self._logits, axis=1), np.concatenate(self._labels)
        return logits[:, : self.num_images], labels[: self.num_images]
