"""Accuracy and loss over the epochs, by layer, and how fast they were reached."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rayff.report.style import (
    BLUE,
    DEPTH,
    ORANGE,
    OTHERS,
    SERIES,
    depth_colour,
    label_ends,
    whole_epochs,
)
from rayff.runs.metrics import EpochRecord

MAX_NAMED = 8
"""Up to here each layer's line has its own name; deeper networks have a scale of colours."""

NUM_BEST = 5
"""Lines that have a colour of their own where there are not enough colours for all."""


def draw_accuracy(figure: Figure, records: Sequence[EpochRecord]) -> None:
    """Draw the accuracy of the chosen window, on validation and test images."""
    epochs = [record.epoch for record in records]
    lines = {
        "valid": ([record.valid_accuracy for record in records], BLUE),
        "test": ([record.test_accuracy for record in records], ORANGE),
    }
    axes = figure.subplots()
    for values, colour in lines.values():
        axes.plot(epochs, values, color=colour, marker=_marker(epochs))
    of = " of the chosen window" if records[-1].has_window else ""
    axes.set_ylabel(f"accuracy{of} (%)")
    whole_epochs(axes, epochs, room=0.22)
    label_ends(
        axes,
        epochs[-1],
        [values[-1] for values, _ in lines.values()],
        [f"{name} {values[-1]:.2f}" for name, (values, _) in lines.items()],
        [colour for _, colour in lines.values()],
    )


def draw_by_layer(figure: Figure, records: Sequence[EpochRecord], values: str, label: str) -> None:
    """Draw a line a layer: `values` is the record's field, one number a layer."""
    epochs = [record.epoch for record in records]
    table = np.array([getattr(record, values) for record in records])
    num_layers = table.shape[1]
    colours = [depth_colour(layer, num_layers) for layer in range(num_layers)]
    axes = figure.subplots()
    width = 1.8 if num_layers <= MAX_NAMED else 1.2
    for layer, colour in enumerate(colours):
        axes.plot(epochs, table[:, layer], color=colour, lw=width, marker=_marker(epochs))
    axes.set_ylabel(label)
    named = num_layers <= MAX_NAMED
    whole_epochs(axes, epochs, room=0.16 if named else 0.04)
    if named:
        names = [f"layer {layer}" for layer in range(num_layers)] if num_layers > 1 else ["head"]
        label_ends(axes, epochs[-1], table[-1].tolist(), names, colours)
        return
    scale = ScalarMappable(BoundaryNorm(np.arange(num_layers + 1) - 0.5, DEPTH.N), DEPTH)
    bar = figure.colorbar(scale, ax=axes, pad=0.02, fraction=0.05)
    bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    bar.ax.minorticks_off()
    bar.ax.grid(visible=False)
    bar.ax.invert_yaxis()
    bar.set_label("layer")


def draw_throughput(figure: Figure, records: Sequence[EpochRecord]) -> None:
    """Draw training images a second of each epoch."""
    epochs = [record.epoch for record in records]
    speeds = [record.images_per_s for record in records]
    axes = figure.subplots()
    axes.plot(epochs, speeds, color=BLUE, marker=_marker(epochs))
    axes.set_ylim(0, 1.12 * max(*speeds, 1e-9))
    axes.set_ylabel("training images / s")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    whole_epochs(axes, epochs)
    label_ends(axes, epochs[-1], speeds[-1:], [f"{speeds[-1]:,.0f}"], [BLUE])


def draw_busy(figure: Figure, names: Sequence[str], shares: Sequence[float]) -> None:
    """Draw a bar a stage with the share of its time that it computed, the busiest marked."""
    axes = figure.subplots()
    places = list(range(len(names)))
    percent = [100 * share for share in shares]
    busiest = int(np.argmax(percent))
    colours = [ORANGE if stage == busiest and len(names) > 1 else BLUE for stage in places]
    axes.barh(places, percent, color=colours, height=0.62)
    for place, value in zip(places, percent, strict=True):
        mark = "  busiest" if place == busiest and len(names) > 1 else ""
        axes.text(value + 1.5, place, f"{value:.0f}%{mark}", va="center", fontsize=8.5)
    axes.set_yticks(places, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 125)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_xlabel("share of the time that it computed (%)")
    axes.grid(visible=False, axis="y")


def draw_runs(
    figure: Figure,
    runs: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
) -> None:
    """Draw the lines of several runs over each other: (name, x, y) each, best first.

    Of many runs the best have names and colours, the others are grey behind them.
    """
    axes = figure.subplots()
    named = len(runs) if len(runs) <= len(SERIES) else NUM_BEST
    for index, (name, x, y) in enumerate(runs[:named]):
        axes.plot(x, y, color=SERIES[index], marker=_marker(x), label=name, zorder=3)
    for index, (_, x, y) in enumerate(runs[named:]):
        label = None if index else f"{len(runs) - named} others"
        axes.plot(x, y, color=OTHERS, lw=1, marker="." if len(x) == 1 else "", label=label)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if xlabel == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    figure.legend(loc="outside upper left", ncols=2, handlelength=1.4)


def _marker(x: Sequence[float]) -> str:
    """Return a mark for each point where there are few of them."""
    return "o" if len(x) <= 12 else ""
