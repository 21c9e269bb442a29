"""What a network predicts on the test images, and the filters of its first layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rayff.config.errors import UserError
from rayff.config.train_config import Device
from rayff.engine.evaluation import Evaluation, Mistake, evaluate, most_confused
from rayff.report.page import Block, Note, Table, picture
from rayff.report.reader import Run
from rayff.report.style import DIVERGING, INK, RED, SEQUENTIAL, colour_bar, plain_image, shorten
from rayff.runs.model_file import read_model

MAX_COUNTED_CLASSES = 12
"""With more classes the confusion matrix has no numbers."""
MAX_NAMED_CLASSES = 20
"""With more classes axes have no class names, and filters no row per class."""
NUM_MISTAKES = 12
NUM_PAIRS = 10
MISTAKES_PER_ROW = 4
MAX_FILTERS_PER_ROW = 12
MAX_FILTERS = 144


def evaluated(
    run: Run, data_dir: Path | None, device: Device, limit: int | None
) -> Evaluation | str:
    """Classify the test images with a run's model, or return why not.

    Args:
        run: its model classifies them.
        data_dir: where the task's data is; None for where the run had it.
        device: where to compute.
        limit: images to classify at most; 0 for none, None for all.
    """
    if limit == 0:
        return "--limit 0 classifies no test images"
    try:
        return evaluate(
            run.path, data_dir=data_dir, device=device, limit=limit, num_mistakes=NUM_MISTAKES
        )
    except UserError as error:
        return str(error)


def prediction_blocks(run: Run, evaluation: Evaluation | str) -> list[Block]:
    """Return confusion matrix, worst mistakes and most confused classes, or why not."""
    if isinstance(evaluation, str):
        title = "Confusion matrix and worst mistakes"
        return [Note(title=title, text=f"Not drawn: {evaluation}.")]
    correct = int(np.trace(evaluation.confusion))
    caption = (
        f"{correct:,} of {evaluation.num_images:,} test images are classified correctly "
        f"({evaluation.accuracy:.2f}%)."
    )
    if run.config.limit is not None:
        caption += f" The run itself used {run.config.limit:,} at most."
    blocks: list[Block] = [
        picture("confusion", "Confusion matrix", caption, 3.9, draw_confusion, evaluation)
    ]
    if correct == evaluation.num_images:
        return [*blocks, Note(title="Worst mistakes", text="There are none.")]
    names = evaluation.class_names
    pairs = most_confused(evaluation.confusion, NUM_PAIRS)
    return [
        *blocks,
        picture(
            "mistakes",
            "Worst mistakes",
            f"Of {evaluation.num_images - correct:,} mistakes, those with the most probable "
            "wrong class (percent).",
            1.55 * math.ceil(len(evaluation.mistakes) / MISTAKES_PER_ROW),
            draw_mistakes,
            evaluation.mistakes,
            names,
        ),
        Table(
            title="Most confused classes",
            columns=("images", "true class", "predicted class"),
            rows=[(str(count), names[true], names[other]) for true, other, count in pairs],
            numeric=(0,),
            wide=False,
        ),
    ]


def filter_picture(run: Run) -> Block:
    """Return the filters of the first layer, or why they cannot be drawn."""
    try:
        model = read_model(run.path)
    except UserError as error:
        return Note(title="Filters", text=f"Not drawn: {error}.")
    if model.first_weight is None:
        return Note(title="Filters", text="Not drawn: the first layer is no convolution.")
    weight = model.first_weight.detach().float().numpy()
    grouped = run.config.loss in ("goodness", "squared_goodness")
    shown, columns, names = filter_layout(weight, model.class_names if grouped else ())
    num_filters, channels, *kernel = weight.shape
    caption = f"{len(shown)} of {num_filters} filters of {kernel[0]}x{kernel[1]} pixels"
    if names:
        caption += ", a row for each class's group"
    caption += ", in colour; grey is zero." if channels == 3 else "; blue is positive."
    height = min(8.0, 4.2 * math.ceil(len(shown) / columns) / columns)
    return picture(
        "filters",
        "Filters of the first layer",
        caption,
        height,
        draw_filters,
        shown,
        columns,
        names,
    )


def filter_layout(
    weight: NDArray[np.float32], class_names: Sequence[str]
) -> tuple[NDArray[np.float32], int, list[str]]:
    """Return the filters to draw out of (K, in, H, W), how many in a row, and the rows' names.

    Each class has a row, unless there are none, too many classes or too few filters.
    """
    num_classes = len(class_names)
    if 0 < num_classes <= MAX_NAMED_CLASSES and len(weight) >= 4 * num_classes:
        groups = weight.reshape(num_classes, -1, *weight.shape[1:])[:, :MAX_FILTERS_PER_ROW]
        return groups.reshape(-1, *weight.shape[1:]), groups.shape[1], list(class_names)
    shown = weight[:MAX_FILTERS]
    return shown, min(MAX_FILTERS_PER_ROW, math.ceil(math.sqrt(1.5 * len(shown)))), []


def draw_confusion(figure: Figure, evaluation: Evaluation) -> None:
    """Draw the number of images by true class (row) and predicted class (column)."""
    counts = evaluation.confusion
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    num_classes = len(counts)
    axes = figure.subplots()
    # the square root keeps a few mistakes visible
    image = axes.imshow(100 * shares, cmap=SEQUENTIAL, norm=PowerNorm(0.5, vmin=0, vmax=100))
    if num_classes <= MAX_COUNTED_CLASSES:
        for true, predicted in np.argwhere(counts):
            axes.text(
                predicted,
                true,
                str(counts[true, predicted]),
                ha="center",
                va="center",
                fontsize=8 if counts.max() < 1000 else 7,
                color="white" if shares[true, predicted] > 0.2 else INK,
            )
    if num_classes <= MAX_NAMED_CLASSES:
        names = [shorten(name, 13) for name in evaluation.class_names]
        rotation = 90 if max(map(len, names)) > 2 else 0
        axes.set_xticks(range(num_classes), names, rotation=rotation)
        axes.set_yticks(range(num_classes), names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    plain_image(axes)
    colour_bar(axes, image, (0, 1, 5, 10, 25, 50, 100), "share of the true class (%)")


def draw_mistakes(figure: Figure, mistakes: Sequence[Mistake], class_names: Sequence[str]) -> None:
    """Draw images with their true and predicted classes."""
    rows = math.ceil(len(mistakes) / MISTAKES_PER_ROW)
    grid = figure.subplots(rows, MISTAKES_PER_ROW, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, mistake in zip(grid.flat, mistakes, strict=False):
        pixels = mistake.image.transpose(1, 2, 0)
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        true, predicted = (shorten(class_names[c], 13) for c in (mistake.true, mistake.predicted))
        axes.set_title(f"true  {true}\npred.  {predicted}", fontsize=8.5, loc="left", pad=3)
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


def draw_filters(
    figure: Figure, weight: NDArray[np.float32], columns: int, names: Sequence[str]
) -> None:
    """Draw filters (K, in, H, W) as one image, row by row: RGB, or their first channel."""
    scaled = weight / np.maximum(np.abs(weight).max(axis=(1, 2, 3), keepdims=True), 1e-12)
    scaled = 0.5 + scaled.transpose(0, 2, 3, 1) / 2
    tiles = scaled if scaled.shape[-1] == 3 else DIVERGING(scaled[..., 0])[..., :3]
    rows = math.ceil(len(tiles) / columns)
    missing = rows * columns - len(tiles)
    tiles = np.pad(tiles, ((0, missing), (0, 1), (0, 1), (0, 0)), constant_values=1.0)
    tiles[len(weight) :] = 1.0
    _, height, width, _ = tiles.shape
    mosaic = tiles.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    axes = figure.subplots()
    axes.imshow(mosaic.reshape(rows * height, columns * width, 3), interpolation="nearest")
    axes.set_xticks([])
    middles = height * np.arange(len(names)) + (height - 1) / 2
    axes.set_yticks(middles, [shorten(name, 13) for name in names])
    axes.tick_params(length=0)
    plain_image(axes)
