"""The report of several runs: a table with the best first, and their curves over each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

from rayff.console.frame import duration
from rayff.report.curves import draw_runs
from rayff.report.page import Block, Note, Page, Section, Table, picture, shown
from rayff.report.sources import Run, varied
from rayff.runs.metrics import EpochRecord


def comparison_page(runs: Sequence[Run]) -> Page:
    """Return the page of several runs; the best validation accuracy comes first."""
    ranked = sorted(runs, key=lambda run: -run.last.valid_accuracy)
    names = distinct([run.path for run in ranked])
    best = ranked[0].last
    return Page(
        title=f"{len(runs)} runs side by side",
        subtitle=", ".join(names),
        facts=[
            ("best run", names[0]),
            ("its test accuracy", f"{best.test_accuracy:.2f}%"),
            ("its validation accuracy", f"{best.valid_accuracy:.2f}%"),
        ],
        sections=[
            Section(
                title="Results", blocks=[_results(ranked, names), _differences(ranked, names)]
            ),
            Section(
                title="Learning",
                blocks=learning([(n, run.records) for n, run in zip(names, ranked, strict=True)]),
            ),
        ],
    )


def learning(runs: Sequence[tuple[str, Sequence[EpochRecord]]]) -> list[Block]:
    """Return the learning curves of named runs, over epochs and over time."""
    epochs = [[float(record.epoch) for record in records] for _, records in runs]
    seconds = [list(accumulate(record.elapsed_s for record in records)) for _, records in runs]
    blocks: list[Block] = []
    for name, title, caption, x, xlabel, field, ylabel in (
        ("valid", "Validation accuracy", "Of the layers chosen after each epoch.",
         epochs, "epoch", "valid_accuracy", "validation accuracy (%)"),
        ("test", "Test accuracy", "Of the layers that the validation images chose.",
         epochs, "epoch", "test_accuracy", "test accuracy (%)"),
        ("valid-by-time", "Validation accuracy by time", "Seconds of the epochs, added up.",
         seconds, "seconds", "valid_accuracy", "validation accuracy (%)"),
        ("loss", "Training loss", "Mean over images and layers.",
         epochs, "epoch", "train_loss", "training loss (nats)"),
    ):  # fmt: skip
        lines = [
            (run, values, [float(getattr(record, field)) for record in records])
            for values, (run, records) in zip(x, runs, strict=True)
        ]
        blocks.append(
            picture(
                name,
                title,
                caption,
                partial(draw_runs, runs=lines, xlabel=xlabel, ylabel=ylabel),
                height=3.4,
            )
        )
    return blocks


def distinct(paths: Sequence[Path]) -> list[str]:
    """Return the folders' own names, with as many parents as tell them apart."""
    full = [path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in full) + 1):
        names = ["/".join(path.parts[-depth:]) for path in full]
        if len(set(names)) == len(set(full)):
            return names
    return [str(path) for path in full]


def _results(runs: Sequence[Run], names: Sequence[str]) -> Table:
    return Table(
        title="Best first",
        columns=(*("run", "method", "test %", "valid %", "layers", "epochs", "images/s", "time"),),
        rows=tuple(
            (
                name,
                run.spec.method,
                f"{run.last.test_accuracy:.2f}",
                f"{run.last.valid_accuracy:.2f}",
                f"{run.last.sip_first}-{run.last.sip_last}" if run.last.has_window else "all",
                str(run.last.epoch),
                f"{run.images_per_s:,.0f}",
                duration(run.seconds),
            )
            for name, run in zip(names, runs, strict=True)
        ),
        caption="By validation accuracy of the last epoch; test accuracy is with the layers that "
        "the validation images chose.",
        numbers=frozenset({2, 3, 4, 5, 6, 7}),
    )


def _differences(runs: Sequence[Run], names: Sequence[str]) -> Block:
    configs = [{**dataclasses.asdict(run.spec), "run_dir": None} for run in runs]
    different = varied(configs)
    title = "Settings that differ"
    if not different:
        return Note(title=title, text="None: all runs have the same settings.")
    return Table(
        title=title,
        columns=("setting", *names),
        rows=tuple((name, *(shown(config[name]) for config in configs)) for name in different),
    )
