"""What each layer adds to a network's accuracy: of one run, and of several side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rayff.report.page import Block, Table, picture
from rayff.report.style import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    OTHERS,
    RED,
    SERIES,
    label_ends,
    marker,
    shorten,
)
from rayff.runs.metrics import EpochRecord


def layer_blocks(record: EpochRecord) -> list[Block]:
    """Return the accuracy of each layer alone, of the sum up to it, and the gain by it."""
    alone, total, gain = layer_gains(record)
    return [
        picture(
            "layer-gain",
            "Accuracy that each layer adds",
            f"Validation accuracy after epoch {record.epoch}: of each layer alone, of the logits "
            "of all layers up to it summed, and by how much the sum gains with it.",
            4.2,
            draw_gains,
            record,
        ),
        Table(
            title="Layer by layer",
            columns=("layer", "alone %", "sum up to it %", "gain", "share of the whole %"),
            rows=[
                (
                    str(layer),
                    f"{alone[layer]:.2f}",
                    f"{total[layer]:.2f}",
                    f"{gain[layer]:+.2f}",
                    f"{100 * gain[layer] / total[-1]:.1f}" if total[-1] else "-",
                )
                for layer in range(len(alone))
            ],
            caption="Shares add up to the accuracy of the sum over all layers.",
            numeric=range(5),
            wide=False,
        ),
    ]


def layer_gains(
    record: EpochRecord,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return validation accuracy of each layer alone, of the sum of layers 0 to it, and its gain.

    In percent, (L,) each; the first layer gains its own accuracy.
    """
    total = np.array(record.sip_accuracy[0])
    return np.array(record.layer_valid_accuracy), total, np.diff(total, prepend=0.0)


def draw_gains(figure: Figure, record: EpochRecord) -> None:
    """Draw accuracy by layer, alone and summed, above the gain of each layer."""
    alone, total, gain = layer_gains(record)
    layers = np.arange(len(alone))
    curves, bars = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    curves.plot(layers, total, color=BLUE, marker="o", label="sum up to it")
    curves.plot(layers, alone, color=MUTED, marker="o", label="alone")
    curves.set_ylabel("validation accuracy (%)")
    colours = [GREEN if value >= 0 else RED for value in gain]
    bars.bar(layers, gain, 0.7, color=colours)
    bars.axhline(0, color=INK, lw=0.8)
    # the first layer's gain is its whole accuracy, which would hide those of the others
    later = gain[1:] if len(gain) > 1 else gain
    low, high = min(0.0, later.min()), max(0.0, later.max())
    room = 0.25 * max(high - low, 0.1)
    bars.set_ylim(low - room, high + room)
    if gain[0] > high + room:
        place = {"xytext": (0, -9), "textcoords": "offset points", "ha": "center"}
        bars.annotate(f"{gain[0]:.1f}", (0, high + room), color="white", fontsize=7, **place)
    bars.set_ylabel("gain (points)")
    bars.set_xlabel("layer")
    ticks = MaxNLocator(nbins=9, integer=True, min_n_ticks=1).tick_values(0, layers[-1])
    bars.set_xticks([tick for tick in ticks if 0 <= tick <= layers[-1]])
    bars.set_xlim(-0.6, len(layers) - 0.4 + 0.18 * len(layers))
    label_ends(curves)


def compared_layers(groups: Sequence[tuple[str, Sequence[EpochRecord]]]) -> list[Block]:
    """Return the accuracies of each layer in the newest epoch of several runs.

    Args:
        groups: the name of each setting with a record of each of its runs.
    """
    caption = "Each layer as the only classifier, after the last epoch."
    if any(len(records) > 1 for _, records in groups):
        caption += " A line is the mean over the runs of one setting; the band has all of them."
    return [
        picture(f"{split}-layers", f"{title} accuracy by layer", caption, 3.4, draw_layers, groups,
                f"layer_{split}_accuracy")
        for split, title in (("valid", "Validation"), ("test", "Test"))
    ]  # fmt: skip


def draw_layers(
    figure: Figure, groups: Sequence[tuple[str, Sequence[EpochRecord]]], field: str
) -> None:
    """Draw a record's list `field` by layer, one line per group; the best ones are coloured."""
    axes = figure.subplots()
    num_coloured = min(len(groups), len(SERIES))
    deepest = max(len(getattr(record, field)) for _, records in groups for record in records)
    for index, (name, records) in enumerate(groups):
        table = np.array([getattr(record, field) for record in records])
        layers = np.arange(table.shape[1])
        if table.shape[1] == 1:  # one classifier, behind the last layer
            layers = np.array([deepest - 1])
        coloured = index < num_coloured
        colour = SERIES[index] if coloured else OTHERS
        others = f"{len(groups) - num_coloured} others" if index == num_coloured else ""
        axes.plot(
            layers,
            table.mean(axis=0),
            color=colour,
            marker=marker(list(layers)) or ".",
            label=shorten(name, 32) if coloured else others,
            zorder=3 if coloured else 2,
        )
        if len(records) > 1:
            axes.fill_between(
                layers, table.min(axis=0), table.max(axis=0), color=colour, alpha=0.2
            )
    axes.set_xlabel("layer")
    split = "test" if field == "layer_test_accuracy" else "validation"
    axes.set_ylabel(f"{split} accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True, min_n_ticks=1))
    figure.legend(loc="outside upper left", ncols=2, handlelength=1.4)
