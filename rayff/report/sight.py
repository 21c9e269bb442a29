"""What a network sees: its mistakes on the test images, and the filters of its first layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rayff.config.errors import UserError
from rayff.config.train_config import Device
from rayff.engine.evaluation import Evaluation, evaluate, most_confused
from rayff.report import images
from rayff.report.page import Block, Note, Table, picture
from rayff.report.sources import Run
from rayff.runs.run_directory import RunDirectory

NUM_MISTAKES = 12
NUM_PAIRS = 10


def mistakes(run: Run, data_dir: Path | None, device: Device, limit: int | None) -> list[Block]:
    """Return the confusion matrix and the worst mistakes, or a word why they are not there.

    Args:
        run: a run; its model classifies the test images.
        data_dir: where the task's data lies; None for where the run had it.
        device: where to compute.
        limit: images to classify at most; 0 for none, None for all.
    """
    title = "Confusion matrix and worst mistakes"
    if limit == 0:
        return [Note(title=title, text="Not asked for: no test images were classified.")]
    try:
        evaluation = evaluate(
            run.path, data_dir=data_dir, device=device, limit=limit, num_mistakes=NUM_MISTAKES
        )
    except UserError as error:
        return [Note(title=title, text=f"Not drawn: {error}.")]
    right = int(np.trace(evaluation.confusion))
    wrong = evaluation.num_images - right
    blocks: list[Block] = [
        picture(
            "confusion",
            "Confusion matrix",
            f"{right:,} of {evaluation.num_images:,} test images are classified rightly "
            f"({evaluation.accuracy:.2f}%)"
            + (
                "."
                if run.spec.limit is None
                else f"; the run itself used {run.spec.limit:,} at most."
            ),
            lambda figure: images.draw_confusion(figure, evaluation),
            height=4.6,
        )
    ]
    if wrong:
        rows = -(-len(evaluation.mistakes) // images.MISTAKES_A_ROW)
        blocks.append(
            picture(
                "mistakes",
                "Worst mistakes",
                f"Of {wrong:,} mistakes, those whose predicted class was most probable (percent).",
                lambda figure: images.draw_mistakes(
                    figure, evaluation.mistakes, evaluation.class_names
                ),
                height=1.55 * rows,
            )
        )
        blocks.append(_confused(evaluation))
    else:
        blocks.append(Note(title="Worst mistakes", text="There are none."))
    return blocks


def _confused(evaluation: Evaluation) -> Table:
    names = evaluation.class_names
    return Table(
        title="Most confused classes",
        columns=("images", "true class", "predicted class"),
        rows=tuple(
            (str(count), names[true], names[predicted])
            for true, predicted, count in most_confused(evaluation.confusion, NUM_PAIRS)
        ),
        numbers=frozenset({0}),
        wide=False,
    )


def filters(run: Run) -> Block:
    """Return the filters of the first layer, or a word why they are not there."""
    try:
        model = RunDirectory(run.path).load_model()
    except UserError as error:
        return Note(title="Filters", text=f"Not drawn: {error}.")
    weight = model.first_weight.detach().float().numpy()
    rows = images.filter_rows(weight, model.class_names)
    columns = max(len(filters) for _, filters in rows)
    coloured = weight.shape[1] == 3
    grouped = bool(rows[0][0])
    of = "whose goodness they make" if run.spec.method == "ff" else "in whose group they are"
    return picture(
        "filters",
        "Filters of the first layer",
        f"{sum(len(filters) for _, filters in rows)} of {len(weight)} filters of "
        f"{weight.shape[2]}x{weight.shape[3]} pixels"
        + (f", a row for each class {of}" if grouped else "")
        + (", in colour; grey is zero." if coloured else "; blue is positive, orange negative."),
        lambda figure: images.draw_filters(figure, weight, model.class_names),
        height=min(8.0, 4.2 * len(rows) / columns),
    )
