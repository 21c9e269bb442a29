"""The figure of `rayff bench to-accuracy`: validation accuracy by seconds of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rayff.report.style import MUTED, SERIES, marker, render

Histories = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
"""By method, of each seed: a mapping with seconds and valid_accuracy for each check."""


def draw(histories: Histories, targets: Sequence[float]) -> bytes:
    """Return the PNG: the median of all seeds as a line, least to most as a band."""
    return render(partial(_draw, histories=histories, targets=targets), 3.4)


def _draw(figure: Figure, histories: Histories, targets: Sequence[float]) -> None:
    axes = figure.subplots()
    for index, (method, seeds) in enumerate(histories.items()):
        colour = SERIES[index % len(SERIES)]
        checks = min(map(len, seeds))  # fewer where one diverged
        seconds, accuracy = (
            np.array([[check[name] for check in seed[:checks]] for seed in seeds])
            for name in ("seconds", "valid_accuracy")
        )
        x = np.median(seconds, axis=0)
        axes.plot(
            *(x, np.median(accuracy, axis=0)),
            color=colour,
            marker=marker(x),
            label=method,
            zorder=3,
        )
        if len(seeds) > 1:
            low, high = accuracy.min(axis=0), accuracy.max(axis=0)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
    low, high = axes.get_ylim()
    for target in targets:
        if low < target < high:
            axes.axhline(target, color=MUTED, lw=0.8, ls=":")
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("validation accuracy (%)")
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.4)
