"""What a network sees: mistakes, the confusion matrix, and the filters of the first layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rayff.engine.evaluation import Evaluation, Mistake
from rayff.report.style import INK, RED, SHADES, SIGNED

MAX_NUMBERED = 12
"""Up to so many classes each field of the confusion matrix shows its number."""
MAX_NAMED = 20
"""Up to so many classes each row and column has a name."""
MISTAKES_A_ROW = 4
MAX_FILTERS_A_ROW = 12
MAX_FILTERS = 144


def short(name: str, length: int = 13) -> str:
    """Return a class name that fits beside others."""
    return name if len(name) <= length else name[: length - 1] + "…"


def draw_confusion(figure: Figure, evaluation: Evaluation) -> None:
    """Draw how many images of each true class (row) went to each predicted one (column)."""
    counts = evaluation.confusion
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    num_classes = len(counts)
    axes = figure.subplots()
    # the square root shows a few mistakes beside many hits
    axes.imshow(np.sqrt(shares), cmap=SHADES, vmin=0, vmax=1)
    if num_classes <= MAX_NUMBERED:
        for (true, predicted), count in np.ndenumerate(counts):
            if count:
                axes.text(
                    predicted,
                    true,
                    str(count),
                    ha="center",
                    va="center",
                    fontsize=8 if counts.max() < 1000 else 7,
                    color="white" if shares[true, predicted] > 0.2 else INK,
                )
    if num_classes <= MAX_NAMED:
        names = [short(name) for name in evaluation.class_names]
        turned = max(map(len, names)) > 2
        axes.set_xticks(range(num_classes), names, rotation=90 if turned else 0)
        axes.set_yticks(range(num_classes), names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def draw_mistakes(figure: Figure, mistakes: Sequence[Mistake], class_names: Sequence[str]) -> None:
    """Draw the images with their true class and the one they were taken for."""
    rows = -(-len(mistakes) // MISTAKES_A_ROW)
    grid = figure.subplots(rows, MISTAKES_A_ROW, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, mistake in zip(grid.flat, mistakes, strict=False):
        pixels = mistake.image.transpose(1, 2, 0)
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        true, predicted = class_names[mistake.true], class_names[mistake.predicted]
        axes.set_title(
            f"true  {short(true)}\npred.  {short(predicted)}", fontsize=8.5, loc="left", pad=3
        )
        axes.text(
            0.97,
            0.03,
            f"{mistake.probability:.0%}",
            transform=axes.transAxes,
            ha="right",
            va="bottom",
            fontsize=8,
            color="white",
            bbox={"facecolor": RED, "edgecolor": "none", "pad": 1.5},
        )


def filter_rows(
    weight: NDArray[np.float32], class_names: Sequence[str]
) -> list[tuple[str, NDArray[np.float32]]]:
    """Return the filters (K, in, H, W) as rows with names: a row a class where they fit."""
    num_classes = len(class_names)
    if num_classes <= MAX_NAMED and len(weight) >= 4 * num_classes:
        groups = weight.reshape(num_classes, -1, *weight.shape[1:])[:, :MAX_FILTERS_A_ROW]
        return [(short(name), group) for name, group in zip(class_names, groups, strict=True)]
    some = weight[:MAX_FILTERS]
    columns = min(MAX_FILTERS_A_ROW, math.ceil(math.sqrt(1.5 * len(some))))
    return [("", some[start : start + columns]) for start in range(0, len(some), columns)]


def draw_filters(figure: Figure, weight: NDArray[np.float32], class_names: Sequence[str]) -> None:
    """Draw the filters of the first layer, (K, in, H, W): in colour, or one channel signed."""
    rows = filter_rows(weight, class_names)
    columns = max(len(filters) for _, filters in rows)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes_row, (name, filters) in zip(grid, rows, strict=True):
        for axes in axes_row:
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        for axes, each in zip(axes_row, filters, strict=False):
            _draw_filter(axes, each)
        axes_row[0].set_ylabel(name, rotation=0, ha="right", va="center")


def _draw_filter(axes: Axes, weight: NDArray[np.float32]) -> None:
    reach = max(float(np.abs(weight).max()), 1e-12)
    if len(weight) == 3:
        axes.imshow(0.5 + weight.transpose(1, 2, 0) / (2 * reach), interpolation="nearest")
    else:
        axes.imshow(weight[0], cmap=SIGNED, vmin=-reach, vmax=reach, interpolation="nearest")
