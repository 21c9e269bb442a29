"""The style of all figures: colours, sizes, label placement, rendering to PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

WIDTH = 4.5
"""Inches of every figure: narrow, so that text stays legible on a phone."""
DPI = 200

INK = "#1f2933"
MUTED = "#66727f"
BLUE = "#2364aa"
ORANGE = "#d9641e"
GREEN = "#3a8a5f"
RED = "#c0392b"
SERIES = (BLUE, ORANGE, GREEN, "#8e5ea2", "#b8860b", "#3aa6a0", "#c2517f", "#5d6d7e")
"""Line colours of runs."""
OTHERS = "#b9c2cc"
SEQUENTIAL = LinearSegmentedColormap.from_list("", ["#f4f7fb", "#9cc3e4", BLUE, "#12284c"])
DEPTH = LinearSegmentedColormap.from_list("", ["#f0a63c", ORANGE, "#a02c5d", "#35276b"])
"""First to last layer."""
DIVERGING = LinearSegmentedColormap.from_list("", [ORANGE, "#ffffff", BLUE])

STYLE_SHEET = Path(__file__).parent / "templates" / "figures.mplstyle"


def render(draw: Callable[[Figure], None], height: float) -> bytes:
    """Return the PNG of a figure of the common width, drawn without pyplot or a display."""
    # "default" first: the user's matplotlibrc does not apply
    with matplotlib.style.context(["default", str(STYLE_SHEET)]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names in any script
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
        draw(figure)
        target = io.BytesIO()
        figure.savefig(target, format="png")
    return target.getvalue()


def shorten(text: str, length: int) -> str:
    """Return the text, without its middle where it has more than `length` characters."""
    head = length // 2
    return text if len(text) <= length else f"{text[:head]}…{text[head + 1 - length :]}"


def marker(x: Sequence[float]) -> str:
    """Return the marker of a line: points are marked where there are few."""
    return "o" if len(x) <= 12 else ""


def epoch_axis(axes: Axes, epochs: Sequence[int], margin: float = 0.16) -> None:
    """Label the x axis in whole epochs; `margin` is the space for labels after the last one."""
    first, last = epochs[0], epochs[-1]
    span = max(1, last - first)
    axes.set_xlim(first - 0.04 * span, last + margin * span)
    ticks = MaxNLocator(nbins=8, integer=True, min_n_ticks=1).tick_values(first, last)
    axes.set_xticks([tick for tick in ticks if first <= tick <= last])
    axes.set_xlabel("epoch")


def plain_image(axes: Axes) -> None:
    """Remove grid and frame from axes that show an image."""
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def colour_bar(axes: Axes, image: ScalarMappable, ticks: Sequence[float], label: str) -> None:
    """Draw the scale of an image's colours, as high as the image.

    The ticks are labelled with as many decimals as tell them apart.
    """
    assert isinstance(axes.figure, Figure)
    bar = axes.figure.colorbar(image, cax=axes.inset_axes((1.03, 0, 0.045, 1)), label=label)
    plain_image(bar.ax)
    for decimals in range(4):
        labels = [f"{tick:.{decimals}f}" for tick in ticks]
        if len(set(labels)) == len(labels):
            break
    bar.set_ticks(ticks, labels=labels)
    bar.ax.minorticks_off()


def label_ends(axes: Axes) -> None:
    """Write the label of each line behind its end, moved apart where labels would overlap."""
    lines = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    ends = np.array([np.array(line.get_data())[:, -1] for line in lines])
    low, high = axes.get_ylim()
    gap = (high - low) * 10 / (axes.bbox.height * 72 / DPI)
    for line, x, y in zip(lines, ends[:, 0], spread(ends[:, 1], gap, low, high), strict=True):
        axes.annotate(
            str(line.get_label()),
            (x, y),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=line.get_color(),
            fontsize=8.5,
            annotation_clip=False,
        )


def spread(
    values: NDArray[np.float64], gap: float, low: float, high: float
) -> NDArray[np.float64]:
    """Return values at least `gap` apart within [low, high], with the smallest squared change.

    That is isotonic regression, here by its min-max formula. `high` yields where there is no
    room for all of them.
    """
    order = np.argsort(values, kind="stable")
    offsets = gap * np.arange(len(values))
    rest = values[order] - offsets
    ends = range(1, len(rest) + 1)
    fitted = [
        max(min(rest[start:end].mean() for end in ends[index:]) for start in range(index + 1))
        for index in range(len(rest))
    ]
    result = np.empty(len(values))
    result[order] = np.clip(fitted, low, max(low, high - gap * (len(rest) - 1))) + offsets
    return result
