"""The report of one run: which pictures it has, and what is said in the place of a missing one."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

from rayff.config.text import plural
from rayff.config.train_config import Device
from rayff.console.frame import duration
from rayff.report import command_line, curves, windows
from rayff.report.page import Block, Code, Page, Section, Table, picture, shown
from rayff.report.sight import filters, mistakes
from rayff.report.sources import Run
from rayff.report.stages import pipeline_blocks, stage_layers

METHODS = {
    "ff": "Forward-Forward",
    "bp": "backpropagation",
    "bp-deepsup": "backpropagation with deep supervision",
}


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
        title=f"{run.spec.arch} on {Path(run.spec.task).name or run.spec.task}",
        subtitle=f"{METHODS[run.spec.method]}, {plural(last.epoch, 'epoch')}, {run.path}",
        facts=[
            ("test accuracy", f"{last.test_accuracy:.2f}%"),
            ("validation accuracy", f"{last.valid_accuracy:.2f}%"),
            *(
                [
                    (
                        "chosen layers",
                        f"{last.sip_first} to {last.sip_last} of {len(last.layer_loss)}",
                    )
                ]
                if last.has_window
                else []
            ),
            *(
                [("pipeline", plural(len(last.stage_busy), "stage"))]
                if run.spec.method == "ff"
                else []
            ),
            ("training images / s", f"{run.images_per_s:,.0f}"),
            ("training time", duration(run.seconds)),
        ],
        sections=[
            Section(title="Learning", blocks=_learning(run)),
            *(
                [Section(title="Which layers classify", blocks=_windows(run))]
                if last.has_window
                else []
            ),
            Section(
                title="What it sees",
                blocks=[*mistakes(run, data_dir, device, limit), filters(run)],
            ),
            Section(
                title="The pipeline" if run.spec.method == "ff" else "The workers",
                blocks=pipeline_blocks(run),
            ),
            Section(title="Settings", blocks=_settings(run)),
        ],
    )


def _learning(run: Run) -> list[Block]:
    records = run.records
    source = {
        "ff": "Each layer learns from a cross entropy of its own.",
        "bp": "Of the linear head, from which all layers learn.",
        "bp-deepsup": "Of each layer's linear head; all layers learn from the sum.",
    }[run.spec.method]
    layers = run.last.has_window
    best = max(records, key=lambda record: record.valid_accuracy)
    blocks: list[Block] = [
        picture(
            "accuracy",
            "Accuracy",
            ("Of the layers that the validation images chose after each epoch. " if layers else "")
            + f"Best validation accuracy: {best.valid_accuracy:.2f}% after epoch {best.epoch}.",
            lambda figure: curves.draw_accuracy(figure, records),
        )
    ]
    for name, title, field, unit, caption in (
        ("loss-by-layer", "Loss by layer" if layers else "Loss", "layer_loss",
         "training loss (nats)", source),
        ("valid-by-layer", "Validation accuracy by layer", "layer_valid_accuracy",
         "validation accuracy (%)", "Of each layer alone."),
        ("test-by-layer", "Test accuracy by layer", "layer_test_accuracy", "test accuracy (%)",
         "Of each layer alone."),
    )[: 3 if layers else 1]:  # fmt: skip
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


def _settings(run: Run) -> list[Block]:
    values = dataclasses.asdict(run.spec)
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
                *((name, shown(value)) for name, value in values.items() if name != "run_dir"),
                *(
                    [("layers of the stages", ", ".join(stage_layers(run)))]
                    if run.spec.method == "ff"
                    else []
                ),
            ),
        ),
    ]
