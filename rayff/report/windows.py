"""Which layers to sum: the matrix of all windows, and accuracy by the number of layers."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from rayff.config.text import layer_range
from rayff.report.style import BLUE, INK, MUTED, ORANGE, SHADES, label_ends
from rayff.runs.metrics import EpochRecord

MAX_NUMBERED = 10
"""Up to so many layers each window of the matrix shows its accuracy as a number."""


def draw_matrix(figure: Figure, record: EpochRecord) -> None:
    """Draw the validation accuracy of every window of layers, the chosen one framed."""
    matrix = np.array(record.sip_accuracy)
    num_layers = len(matrix)
    upper = np.triu(np.ones_like(matrix, dtype=bool))
    low, high = matrix[upper].min(), matrix[upper].max()
    axes = figure.subplots()
    # the good windows lie close together, the bad ones far below them
    shade = PowerNorm(3, vmin=low, vmax=max(high, low + 1e-9))
    image = axes.imshow(np.ma.masked_array(matrix, ~upper), cmap=SHADES, norm=shade)
    if num_layers <= MAX_NUMBERED:
        for first, last in zip(*np.nonzero(upper), strict=True):
            value = matrix[first, last]
            colour = "white" if shade(value) > 0.45 else INK
            axes.text(last, first, f"{value:.1f}", ha="center", va="center", color=colour)
    chosen = (record.sip_last - 0.5, record.sip_first - 0.5)
    axes.add_patch(Rectangle(chosen, 1, 1, fill=False, ec=ORANGE, lw=2.5, zorder=3))
    axes.text(
        0.03,
        0.03,
        f"chosen: {layer_range(record.sip_first, record.sip_last)}\n"
        f"{record.valid_accuracy:.2f}% valid",
        transform=axes.transAxes,
        va="bottom",
        color=ORANGE,
        fontweight="bold",
    )
    axes.set_xlabel("last layer of the window")
    axes.set_ylabel("first layer of the window")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05)
    bar.outline.set_visible(False)
    bar.ax.grid(visible=False)
    marks = [float(shade.inverse(share)) for share in np.linspace(0, 1, 6)]
    bar.set_ticks(marks, labels=[f"{mark:.0f}" for mark in marks])
    bar.ax.minorticks_off()
    bar.set_label("validation accuracy (%)")


def draw_depth(figure: Figure, record: EpochRecord) -> None:
    """Draw validation accuracy against the last layer that is summed and computed."""
    matrix = np.array(record.sip_accuracy)
    num_layers = len(matrix)
    axes = figure.subplots()
    lines = [(0, MUTED if record.sip_first else BLUE)]
    if record.sip_first:
        lines.append((record.sip_first, BLUE))
    for first, colour in lines:
        layers = np.arange(first, num_layers)
        axes.plot(layers + 1, matrix[first, first:], color=colour, marker="o")
    chosen = (record.sip_last + 1, matrix[record.sip_first, record.sip_last])
    axes.plot(*chosen, marker="o", ms=11, mfc="none", mec=ORANGE, mew=2)
    axes.set_xlim(0.7, num_layers + 0.3 + 0.3 * num_layers)
    ticks = MaxNLocator(nbins=9, integer=True).tick_values(1, num_layers)
    axes.set_xticks([tick for tick in ticks if 1 <= tick <= num_layers])
    axes.set_xlabel("layers that are computed")
    axes.set_ylabel("validation accuracy (%)")
    label_ends(
        axes,
        num_layers,
        [float(matrix[first, -1]) for first, _ in lines],
        [f"sum from layer {first}" for first, _ in lines],
        [colour for _, colour in lines],
    )
    axes.text(
        0.98,
        0.04,
        f"chosen: {layer_range(record.sip_first, record.sip_last)}, {chosen[1]:.2f}%",
        transform=axes.transAxes,
        ha="right",
        color=ORANGE,
        fontweight="bold",
    )
