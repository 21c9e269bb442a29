"""The report of one run: which pictures it has, and what is said in the place of a missing one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from rayff.pictures import command_line, curves, gantt, images, windows
from rayff.pictures.page import Block, Code, Note, Page, Section, Table, picture
from rayff.pictures.sources import Run
from rayff.spec import UserError
from rayff.spec.run import Device
from rayff.training.evaluation import Evaluation, evaluate, most_confused
from rayff.training.frame import duration
from rayff.training.run_directory import RunDirectory
from rayff.training.timeline import FILE, Span, read_timeline

NUM_MISTAKES = 12
NUM_PAIRS = 10


def run_page(run: Run, *, data_dir: Path | None, device: Device, limit: int | None) -> Page:
    """Return the page of a run.

    Args:
        run: what it left behind.
        data_dir: where the task's data lies; None for where the run had it.
        device: where the test images are classified.
        limit: test images to classify at most; 0 for none, None for all.
    """
    last = run.last
    return Page(
        title=f"{run.spec.arch} on {Path(run.spec.task).name}",
        subtitle=f"{run.path}, {len(run.records)} epochs",
        facts=[
            ("test accuracy", f"{last.test_accuracy:.2f}%"),
            ("validation accuracy", f"{last.valid_accuracy:.2f}%"),
            ("chosen layers", f"{last.sip_first} to {last.sip_last} of {len(last.layer_loss)}"),
            ("pipeline", f"{len(last.stage_busy)} stages"),
            ("training images / s", f"{run.images_per_s:,.0f}"),
            ("training time", duration(run.seconds)),
        ],
        sections=[
            Section(title="Learning", blocks=_learning(run)),
            Section(title="Which layers classify", blocks=_windows(run)),
            Section(title="Mistakes", blocks=_mistakes(run, data_dir, device, limit)),
            Section(title="The pipeline", blocks=_pipeline(run)),
            Section(title="The first layer", blocks=[_filters(run)]),
            Section(title="Settings", blocks=_settings(run)),
        ],
    )


def _learning(run: Run) -> list[Block]:
    records = run.records
    best = max(records, key=lambda record: record.valid_accuracy)
    blocks: list[Block] = [
        picture(
            "accuracy",
            "Accuracy",
            "Of the layers that the validation images chose after each epoch. Best validation "
            f"accuracy: {best.valid_accuracy:.2f}% after epoch {best.epoch}.",
            lambda figure: curves.draw_accuracy(figure, records),
        )
    ]
    for name, title, field, unit, caption in (
        ("loss-by-layer", "Loss by layer", "layer_loss", "training loss (nats)",
         "Each layer learns from a cross entropy of its own."),
        ("valid-by-layer", "Validation accuracy by layer", "layer_valid_accuracy",
         "validation accuracy (%)", "Of each layer alone."),
        ("test-by-layer", "Test accuracy by layer", "layer_test_accuracy", "test accuracy (%)",
         "Of each layer alone."),
    ):  # fmt: skip
        blocks.append(
            picture(
                name,
                title,
                caption,
                partial(curves.draw_by_layer, records=records, values=field, label=unit),
            )
        )
    return blocks


def _windows(run: Run) -> list[Block]:
    last = run.last
    return [
        picture(
            "windows",
            "Every window of layers",
            f"Validation accuracy after epoch {last.epoch} with the goodness of layers first to "
            "last summed. The best window is chosen, the shallowest of equals.",
            lambda figure: windows.draw_matrix(figure, last),
            height=3.9,
        ),
        picture(
            "depth",
            "Accuracy and depth",
            "Layers behind the last of the chosen window need not be computed to classify.",
            lambda figure: windows.draw_depth(figure, last),
            height=3.9,
        ),
    ]


def _mistakes(run: Run, data_dir: Path | None, device: Device, limit: int | None) -> list[Block]:
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
            f"({evaluation.accuracy:.2f}%).",
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
                f"Of {wrong:,} mistakes, those whose wrong class was the most probable.",
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
    )


def _pipeline(run: Run) -> list[Block]:
    last = run.last
    same = [record for record in run.records if record.cuts == last.cuts]
    shares = np.array([record.stage_busy for record in same]).mean(axis=0)
    bounds = [0, *last.cuts, len(last.layer_loss)]
    names = [
        f"stage {stage}\nlayers {first}-{after - 1}"
        for stage, (first, after) in enumerate(zip(bounds, bounds[1:], strict=False))
    ]
    return [
        *_timeline(run),
        picture(
            "busy",
            "How busy each stage is",
            f"Mean of {len(same)} epochs, evaluation included; the busiest stage sets the pace.",
            lambda figure: curves.draw_busy(figure, names, shares.tolist()),
            height=max(2.0, 0.9 + 0.42 * len(names)),
        ),
        picture(
            "throughput",
            "Throughput",
            "Training images a second in each epoch; evaluation is not counted.",
            lambda figure: curves.draw_throughput(figure, run.records),
            height=2.6,
        ),
    ]


def _timeline(run: Run) -> list[Block]:
    path = run.path / FILE
    title = "Timeline of the pipeline"
    if not path.exists():
        return [Note(title=title, text=f"Not drawn: the run has no {FILE}.")]
    try:
        spans = read_timeline(path)
    except UserError as error:
        return [Note(title=title, text=f"Not drawn: {error}.")]
    if not spans:
        return [Note(title=title, text=f"Not drawn: {FILE} has no rows.")]
    return [
        _excerpt(name, title, caption, spans, excerpt)
        for name, title, caption, excerpt in _excerpts(spans)
    ]


def _excerpts(spans: Sequence[Span]) -> list[tuple[str, str, str, gantt.Excerpt]]:
    first, newest = spans[0].epoch, spans[-1].epoch
    excerpts = [
        (
            "timeline-fill",
            f"Timeline: epoch {first} begins",
            "The pipeline fills: a stage begins when the first chunk reaches it. A bar is a chunk "
            "of batches, its number that of the first of them.",
            gantt.fill(spans),
        )
    ]
    if newest != first:
        excerpts.append(
            (
                "timeline-turn",
                f"Timeline: epoch {first} ends",
                "Evaluation follows training through the pipeline, and the next epoch follows "
                "evaluation, without a stop between them.",
                gantt.turn(spans, first),
            )
        )
    excerpts.append(
        (
            "timeline-drain",
            f"Timeline: epoch {newest} ends",
            "Evaluation follows training through the pipeline, which drains stage by stage.",
            gantt.turn(spans, newest),
        )
    )
    return excerpts


def _excerpt(
    name: str, title: str, caption: str, spans: Sequence[Span], excerpt: gantt.Excerpt
) -> Block:
    num_stages = 1 + max(span.stage for span in spans)
    return picture(
        name,
        title,
        caption,
        lambda figure: gantt.draw_timeline(figure, spans, excerpt),
        height=max(2.0, 1.1 + 0.36 * num_stages),
    )


def _filters(run: Run) -> Block:
    try:
        model = RunDirectory(run.path).load_model()
    except UserError as error:
        return Note(title="Filters", text=f"Not drawn: {error}.")
    layer = model.chain.cwconvs()[0]
    weight = layer.weight.detach().float().numpy()
    rows = images.filter_rows(weight, model.class_names)
    columns = max(len(filters) for _, filters in rows)
    coloured = weight.shape[1] == 3
    grouped = bool(rows[0][0])
    return picture(
        "filters",
        "Filters of the first layer",
        f"{sum(len(filters) for _, filters in rows)} of {len(weight)} filters of "
        f"{layer.spec.kernel_size}x{layer.spec.kernel_size} pixels"
        + (", a row for each class whose goodness they make" if grouped else "")
        + (", in colour; grey is zero." if coloured else "; blue is positive, orange negative."),
        lambda figure: images.draw_filters(figure, weight, model.class_names),
        height=min(8.0, 4.2 * len(rows) / columns),
    )


def _settings(run: Run) -> list[Block]:
    last = run.last
    values = dataclasses.asdict(run.spec)
    bounds = [0, *last.cuts, len(last.layer_loss)]
    stages = [f"{a}-{b - 1}" for a, b in zip(bounds, bounds[1:], strict=False)]
    return [
        Code(
            title="To train it again",
            text=f"{command_line.from_config(run.path)}\n\n{command_line.from_flags(run.spec)}",
            caption="Either command; the second needs no file of this run.",
        ),
        Table(
            title="config.json",
            columns=("setting", "value"),
            rows=(
                *((name, _shown(value)) for name, value in values.items() if name != "run_dir"),
                ("layers of the stages", ", ".join(stages)),
            ),
        ),
    ]


def _shown(value: object) -> str:
    if value is None:
        return "default"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
