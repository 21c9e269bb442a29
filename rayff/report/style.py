"""How all pictures look: colours, sizes, and from a drawing to the bytes of a PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

WIDTH = 5.0
"""Inches of every picture: narrow, so that its words can still be read on a telephone."""
DPI = 200

INK = "#1f2933"
MUTED = "#66727f"
FAINT = "#dfe4ea"
BLUE = "#2364aa"
ORANGE = "#d9641e"
GREEN = "#3a8a5f"
RED = "#c0392b"
SERIES = (BLUE, ORANGE, GREEN, "#8e5ea2", "#b8860b", "#3aa6a0", "#c2517f", "#5d6d7e")
"""Colours of runs, the best first."""
OTHERS = "#b9c2cc"
SHADES = LinearSegmentedColormap.from_list("shades", ["#f4f7fb", "#9cc3e4", BLUE, "#12284c"])
"""From few to many."""
DEPTH = LinearSegmentedColormap.from_list("depth", ["#f0a63c", ORANGE, "#a02c5d", "#35276b"])
"""From the first layer to the last."""
SIGNED = LinearSegmentedColormap.from_list("signed", [ORANGE, "#ffffff", BLUE])
"""From negative over zero to positive."""

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold any character
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def render(draw: Callable[[Figure], None], height: float) -> bytes:
    """Return the PNG of what `draw` puts on a figure of the common width.

    No backend is chosen and no display is asked for: a figure without pyplot is drawn by Agg.
    """
    # "default" first: the user's own settings are for the user's own pictures
    with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names of all scripts
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
        draw(figure)
        target = io.BytesIO()
        figure.savefig(target, format="png")
    return target.getvalue()


def depth_colour(layer: int, num_layers: int) -> tuple[float, float, float, float]:
    """Return the colour of a layer."""
    red, green, blue, alpha = DEPTH(layer / max(1, num_layers - 1))
    return red, green, blue, alpha


def whole_epochs(axes: Axes, epochs: Sequence[int], room: float = 0.16) -> None:
    """Mark the horizontal axis in epochs, with room for words behind the last."""
    first, last = epochs[0], epochs[-1]
    span = max(1, last - first)
    axes.set_xlim(first - 0.04 * span, last + room * span)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    ticks = [tick for tick in axes.get_xticks() if first <= tick <= last]
    axes.set_xticks(ticks)
    axes.set_xlabel("epoch")


def label_ends(
    axes: Axes,
    x: float,
    ends: Sequence[float],
    labels: Sequence[str],
    colours: Sequence[object],
) -> None:
    """Write each line's name behind its end, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    points = axes.bbox.height * 72 / DPI
    gap = (high - low) * 10 / points
    places = spread(np.array(ends, dtype=float), gap, low, high)
    for place, label, colour in zip(places, labels, colours, strict=True):
        axes.annotate(
            label,
            (x, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8.5,
            annotation_clip=False,
        )


def spread(
    values: NDArray[np.float64], gap: float, low: float, high: float
) -> NDArray[np.float64]:
    """Move values apart until neighbours are `gap` from one another, as little as is needed.

    They stay between `low` and `high` where there is room for all of them.
    """
    order = np.argsort(values, kind="stable")
    placed: list[list[float]] = []  # groups of neighbours that touch: [sum of centres, size]
    for value in values[order]:
        placed.append([float(value), 1])
        while len(placed) > 1:
            (below, n), (above, m) = placed[-2:]
            if above / m - below / n >= gap * (n + m) / 2:
                break
            placed[-2:] = [[below + above, n + m]]
    result = np.empty(len(values))
    position = 0
    for total, size in placed:
        count = int(size)
        half = gap * (count - 1) / 2
        centre = min(max(total / count, low + half), max(high - half, low + half))
        result[order[position : position + count]] = centre + gap * np.arange(count) - half
        position += count
    return result
