"""Readouts of a run: their accuracies, what their probabilities are worth, early exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rayff.config.text import layer_range
from rayff.engine.evaluation import Evaluation, ReadoutScore
from rayff.learning.calibration import EarlyExit, Reliability
from rayff.report.page import Block, Note, Table, picture
from rayff.report.reader import Run
from rayff.report.style import BLUE, MUTED, ORANGE, OTHERS
from rayff.runs.metrics import EpochRecord

SHOWN_THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.99)
"""Of early exit, in the table."""
MARKED_THRESHOLDS = {0.5: "o", 0.9: "s"}
"""Marked on the curve, each by a marker: labels would overlap where few layers are computed."""
FEW = 0.01
"""Share of the images below which a bin is drawn pale."""
KINDS = {"calibrated": ("with temperatures", BLUE), "uncalibrated": ("plain logits", ORANGE)}


def readout_blocks(run: Run, evaluation: Evaluation | None) -> list[Block]:
    """Return accuracies, reliability and early exit; without an evaluation the first alone."""
    if evaluation is None:
        why = "Not drawn: no test images were classified (see Predictions)."
        return [
            accuracy_table(run.last, None),
            Note(title="Reliability and early exit", text=why),
        ]
    score = evaluation.readouts[evaluation.readout]
    blocks: list[Block] = [accuracy_table(run.last, evaluation)]
    if not evaluation.calibrated:
        text = "The model has no temperatures: its probabilities are those of the plain logits."
        blocks.append(Note(title="Not calibrated", text=text))
    blocks.append(
        picture(
            "reliability",
            "Reliability",
            f"Test images in {len(score.reliability.counts)} bins by the probability of their "
            f"predicted class (readout {evaluation.readout}). Where a bar ends at the line, a "
            "probability means what it says; pale bars are of few images. Temperatures are "
            "fitted on the validation images.",
            3.6,
            draw_reliability,
            score,
        )
    )
    first, last = evaluation.window
    if last > first:
        blocks += [
            picture(
                "early-exit",
                "Early exit",
                "Test accuracy against the mean number of layers computed: an image leaves at the "
                "first layer of the window that gives a class the probability of the threshold.",
                3.4,
                draw_early_exits,
                evaluation.early_exits,
            ),
            _early_exit_table(evaluation.early_exits),
        ]
    return blocks


def accuracy_table(record: EpochRecord, evaluation: Evaluation | None) -> Table:
    """Return the test accuracy of each readout, and the quality of its probabilities."""
    end = len(record.layer_loss) - 1
    window = (record.sip_first, record.sip_last) if evaluation is None else evaluation.window
    layers = {"window": window, "last": (end, end), "fusion": (0, end)}
    cells: dict[str, list[str]] = {}
    if evaluation is None:
        for name, accuracy in record.readouts.items():
            cells[name] = [f"{accuracy:.2f}", *["-"] * 4]
    else:
        for known, score in evaluation.readouts.items():
            cells[known] = _quality(score)
    rows = [
        [name, layer_range(*layers[name]) if record.has_window else "all", *values]
        for name, values in cells.items()
    ]
    return Table(
        title="Readouts",
        columns=(
            *("readout", "layers", "test %", "probability %", "error %", "error without %"),
            "temperature",
        ),
        rows=rows,
        caption="How the layers' logits become one classifier: the sum over the window chosen on "
        "the validation images, the last layer alone, or a logistic regression on all of them. "
        "Probability: mean of the predicted class. Error: expected calibration error, with the "
        "temperature and without.",
        numeric=range(2, 7),
    )


def _quality(score: ReadoutScore) -> list[str]:
    return [
        f"{score.accuracy:.2f}",
        f"{100 * score.reliability.mean_probability:.2f}",
        f"{100 * score.reliability.calibration_error:.2f}",
        f"{100 * score.uncalibrated.calibration_error:.2f}",
        f"{score.temperature:.3g}",
    ]


def draw_reliability(figure: Figure, score: ReadoutScore) -> None:
    """Draw accuracy by bin above the images of each bin, without and with temperature."""
    grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[3, 1])
    both = (("plain logits", score.uncalibrated),
            (f"temperature {score.temperature:.3g}", score.reliability))  # fmt: skip
    for (bars, counts), (title, found) in zip(grid.T, both, strict=True):
        _draw_bins(bars, counts, found)
        bars.set_title(
            f"{title}\nerror {100 * found.calibration_error:.1f}%", fontsize=9, loc="left"
        )
    grid[0, 0].set_ylabel("accuracy (%)")
    grid[1, 0].set_ylabel("images (%)")
    figure.supxlabel("probability of the predicted class (%)", fontsize=9)


def _draw_bins(bars: Axes, counts: Axes, found: Reliability) -> None:
    """Draw the accuracy of the bins that have images, and the share of all images in each."""
    bins = len(found.counts)
    width, middles = 100 / bins, 100 * (np.arange(bins) + 0.5) / bins
    bars.plot((0, 100), (0, 100), color=ORANGE, lw=1.2, ls="--", zorder=3)
    shares = found.counts / found.counts.sum()
    for bin_ in np.flatnonzero(found.counts):
        alpha = 0.35 if shares[bin_] < FEW else 1.0
        bars.bar(middles[bin_], 100 * found.accuracy[bin_], 0.9 * width, color=BLUE, alpha=alpha)
    counts.bar(middles, 100 * shares, 0.9 * width, color=OTHERS)
    bars.set_xlim(0, 100)
    bars.set_ylim(0, 100)


def draw_early_exits(figure: Figure, exits: Mapping[str, Sequence[EarlyExit]]) -> None:
    """Draw accuracy against the mean number of layers, a line each, some thresholds marked."""
    axes = figure.subplots()
    for kind, (label, colour) in reversed(KINDS.items()):
        points = exits[kind]
        layers = [point.mean_layers for point in points]
        accuracy = [100 * point.accuracy for point in points]
        axes.plot(layers, accuracy, color=colour, label=label)
        for point in points:
            if point.threshold in MARKED_THRESHOLDS:
                x, y = point.mean_layers, 100 * point.accuracy
                shape = MARKED_THRESHOLDS[point.threshold]
                axes.plot(x, y, color=colour, marker=shape, ms=6, mfc="white", label="_threshold")
    for threshold, shape in MARKED_THRESHOLDS.items():
        label = f"threshold {threshold:g}"
        axes.plot([], [], color=MUTED, ls="", marker=shape, ms=6, mfc="white", label=label)
    axes.margins(x=0.06, y=0.12)
    axes.set_xlabel("layers computed, mean over the images")
    axes.set_ylabel("test accuracy (%)")
    figure.legend(loc="outside upper left", ncols=2, handlelength=1.4)


def _early_exit_table(exits: Mapping[str, Sequence[EarlyExit]]) -> Table:
    return Table(
        title="Early exit at some thresholds",
        columns=("threshold", *("layers", "accuracy %") * 2),
        rows=[
            (
                f"{calibrated.threshold:g}",
                f"{calibrated.mean_layers:.2f}",
                f"{100 * calibrated.accuracy:.2f}",
                f"{plain.mean_layers:.2f}",
                f"{100 * plain.accuracy:.2f}",
            )
            for calibrated, plain in zip(*(exits[kind] for kind in KINDS), strict=True)
            if calibrated.threshold in SHOWN_THRESHOLDS
        ],
        caption="Mean number of layers and test accuracy, with temperatures and, in the last two "
        "columns, without.",
        numeric=range(5),
        wide=False,
    )
