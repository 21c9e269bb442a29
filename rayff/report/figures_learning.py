"""Learning curves of one run or several, and the accuracy of every window of layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from rayff.config.text import layer_range
from rayff.report.page import Block, picture
from rayff.report.reader import Run
from rayff.report.style import (
    BLUE,
    DEPTH,
    INK,
    MUTED,
    ORANGE,
    OTHERS,
    SEQUENTIAL,
    SERIES,
    colour_bar,
    epoch_axis,
    label_ends,
    marker,
    plain_image,
    shorten,
)
from rayff.runs.metrics import EpochRecord

MAX_LABELLED_LAYERS = 8
"""Deeper networks get a colour bar in place of line labels."""
MAX_PRINTED_LAYERS = 10
"""Deeper networks get no numbers in the matrix of windows."""
NUM_BEST = 5
"""Runs that keep their colour where there are more runs than colours."""

LABELS = {
    "train_loss": "training loss (nats)",
    "layer_loss": "training loss (nats)",
    "valid_accuracy": "validation accuracy (%)",
    "layer_valid_accuracy": "validation accuracy (%)",
    "test_accuracy": "test accuracy (%)",
    "layer_test_accuracy": "test accuracy (%)",
}
"""Axis labels of a record's fields."""
CHOSEN = "With the window of layers chosen on the validation images."
ALONE = "Each layer as the only classifier."
LOSS = {
    "ff": "Each layer minimises its own local loss.",
    "bp": "Of the linear head; its gradient trains all layers.",
    "bp-deepsup": "Of each layer's linear head; all layers minimise the sum.",
}


def run_curves(run: Run) -> list[Block]:
    """Return accuracy and loss of a run by epoch, as a whole and by layer."""
    records, has_window = run.records, run.last.has_window
    best = max(records, key=lambda record: record.valid_accuracy)
    caption = f"Best validation accuracy: {best.valid_accuracy:.2f}% after epoch {best.epoch}."
    caption = f"{CHOSEN} {caption}" if has_window else caption
    by_layer = [
        ("loss-by-layer", "Loss by layer", LOSS[run.config.method], "layer_loss"),
        ("valid-by-layer", "Validation accuracy by layer", ALONE, "layer_valid_accuracy"),
        ("test-by-layer", "Test accuracy by layer", ALONE, "layer_test_accuracy"),
    ]
    if not has_window:
        by_layer = [("loss-by-layer", "Loss", LOSS[run.config.method], "layer_loss")]
    return [
        picture("accuracy", "Accuracy", caption, 3.0, draw_accuracy, records),
        *(
            picture(name, title, text, 3.0, draw_by_layer, records, field)
            for name, title, text, field in by_layer
        ),
    ]


def compared_curves(runs: Sequence[tuple[str, Sequence[EpochRecord]]]) -> list[Block]:
    """Return the learning curves of named runs, best first, by epoch and by time."""
    time, mean = "Cumulative time of the epochs.", "Mean over images and layers."
    return [
        picture(name, title, caption, 3.4, draw_runs, runs, field, by_time=caption is time)
        for name, title, caption, field in (
            ("valid", "Validation accuracy", CHOSEN, "valid_accuracy"),
            ("test", "Test accuracy", CHOSEN, "test_accuracy"),
            ("valid-by-time", "Validation accuracy by time", time, "valid_accuracy"),
            ("loss", "Training loss", mean, "train_loss"),
        )
    ]


def window_pictures(record: EpochRecord) -> list[Block]:
    """Return the accuracy of every window of layers, and by the number of layers computed."""
    windows = (
        f"Validation accuracy after epoch {record.epoch} with the logits of the layers first to "
        "last summed. The best window is chosen; on a tie the shallowest."
    )
    depth = "Layers after the chosen window are not needed for inference."
    return [
        picture("windows", "Accuracy of every window", windows, 3.9, draw_windows, record),
        picture("depth", "Accuracy by depth", depth, 3.9, draw_depth, record),
    ]


def draw_accuracy(figure: Figure, records: Sequence[EpochRecord]) -> None:
    """Draw the accuracy of the chosen window on validation and test images."""
    epochs = [record.epoch for record in records]
    axes = figure.subplots()
    for name, colour in (("valid", BLUE), ("test", ORANGE)):
        values = [getattr(record, f"{name}_accuracy") for record in records]
        label = f"{name} {values[-1]:.2f}"
        axes.plot(epochs, values, color=colour, marker=marker(epochs), label=label)
    of = " of the chosen window" if records[-1].has_window else ""
    axes.set_ylabel(f"accuracy{of} (%)")
    epoch_axis(axes, epochs, margin=0.22)
    label_ends(axes)


def draw_by_layer(figure: Figure, records: Sequence[EpochRecord], field: str) -> None:
    """Draw one line per layer of a record's list `field`."""
    epochs = [record.epoch for record in records]
    table = np.array([getattr(record, field) for record in records])
    num_layers = table.shape[1]
    labelled = num_layers <= MAX_LABELLED_LAYERS
    names = [f"layer {layer}" for layer in range(num_layers)] if num_layers > 1 else ["head"]
    axes = figure.subplots()
    axes.set_prop_cycle(color=DEPTH(np.linspace(0, 1, num_layers)))
    axes.plot(epochs, table, marker=marker(epochs), lw=1.8 if labelled else 1.2, label=names)
    axes.set_ylabel(LABELS[field])
    epoch_axis(axes, epochs, margin=0.16 if labelled else 0.04)
    if labelled:
        label_ends(axes)
        return
    norm = BoundaryNorm(np.arange(num_layers + 1) - 0.5, DEPTH.N)
    bar = figure.colorbar(ScalarMappable(norm, DEPTH), ax=axes, pad=0.02, fraction=0.05)
    bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    bar.ax.minorticks_off()
    bar.ax.grid(visible=False)
    bar.ax.invert_yaxis()
    bar.set_label("layer")


def draw_runs(
    figure: Figure,
    runs: Sequence[tuple[str, Sequence[EpochRecord]]],
    field: str,
    *,
    by_time: bool,
) -> None:
    """Draw a record's field, one line per run; of many runs only the best are coloured."""
    coloured = len(runs) if len(runs) <= len(SERIES) else NUM_BEST
    axes = figure.subplots()
    for index, (name, records) in enumerate(runs):
        y = [getattr(record, field) for record in records]
        seconds = accumulate(record.elapsed_s for record in records)
        x = list(seconds) if by_time else [float(record.epoch) for record in records]
        if index < coloured:
            label = shorten(name, 32)
            axes.plot(x, y, color=SERIES[index], marker=marker(x), label=label, zorder=3)
        else:
            label = f"{len(runs) - coloured} others" if index == coloured else ""
            axes.plot(x, y, color=OTHERS, lw=1, marker="." if len(x) == 1 else "", label=label)
    axes.set_ylabel(LABELS[field])
    axes.set_xlabel("seconds" if by_time else "epoch")
    if not by_time:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    figure.legend(loc="outside upper left", ncols=2, handlelength=1.4)


def draw_windows(figure: Figure, record: EpochRecord) -> None:
    """Draw the matrix of validation accuracies by first and last layer, the chosen one framed."""
    matrix = np.array(record.sip_accuracy)
    upper = np.triu(np.ones_like(matrix, dtype=bool))
    low, high = matrix[upper].min(), matrix[upper].max()
    axes = figure.subplots()
    # good windows differ little from one another and much from the bad ones
    norm = PowerNorm(3, vmin=low, vmax=max(high, low + 1e-9))
    image = axes.imshow(np.where(upper, matrix, np.nan), cmap=SEQUENTIAL, norm=norm)
    if len(matrix) <= MAX_PRINTED_LAYERS:
        for first, last in np.argwhere(upper):
            value = matrix[first, last]
            colour = "white" if norm(value) > 0.45 else INK
            axes.text(last, first, f"{value:.1f}", ha="center", va="center", color=colour)
    corner = (record.sip_last - 0.5, record.sip_first - 0.5)
    frame = Rectangle(corner, 1, 1, fill=False, ec=ORANGE, lw=2.5, zorder=3, clip_on=False)
    axes.add_patch(frame)
    _title_window(axes, record)
    axes.set_xlabel("last layer of the window")
    axes.set_ylabel("first layer of the window")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
    plain_image(axes)
    ticks = [float(norm.inverse(share)) for share in np.linspace(0, 1, 6)]
    colour_bar(axes, image, ticks, "validation accuracy (%)")


def draw_depth(figure: Figure, record: EpochRecord) -> None:
    """Draw validation accuracy against the number of layers computed."""
    matrix = np.array(record.sip_accuracy)
    num_layers = len(matrix)
    axes = figure.subplots()
    for first, colour in ({0: MUTED} | {record.sip_first: BLUE}).items():
        layers, label = np.arange(first, num_layers) + 1, f"sum from layer {first}"
        axes.plot(layers, matrix[first, first:], color=colour, marker="o", label=label)
    chosen = (record.sip_last + 1, matrix[record.sip_first, record.sip_last])
    axes.plot(*chosen, marker="o", ms=11, mfc="none", mec=ORANGE, mew=2)
    axes.set_xlim(0.7, num_layers + 0.3 + 0.3 * num_layers)
    ticks = MaxNLocator(nbins=9, integer=True).tick_values(1, num_layers)
    axes.set_xticks([tick for tick in ticks if 1 <= tick <= num_layers])
    axes.set_xlabel("layers computed")
    axes.set_ylabel("validation accuracy (%)")
    label_ends(axes)
    _title_window(axes, record)


def _title_window(axes: Axes, record: EpochRecord) -> None:
    window = layer_range(record.sip_first, record.sip_last)
    title = f"chosen: {window}, {record.valid_accuracy:.2f}%"
    axes.set_title(title, loc="right", color=ORANGE, fontsize=9, fontweight="bold")
