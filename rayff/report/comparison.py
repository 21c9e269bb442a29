"""The report of several runs, best first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rayff.config.text import layer_range
from rayff.console.frame import duration, setting
from rayff.report.figures_learning import compared_curves
from rayff.report.page import Block, Note, Page, Table
from rayff.report.reader import Run, varied


def comparison_page(runs: Sequence[Run]) -> Page:
    """Return the page of several runs; the best validation accuracy comes first."""
    ranked = sorted(runs, key=lambda run: -run.last.valid_accuracy)
    names = distinct_names([run.path for run in ranked])
    best = ranked[0].last
    curves = [(name, run.records) for name, run in zip(names, ranked, strict=True)]
    return Page(
        title=f"Comparison of {len(runs)} runs",
        subtitle=", ".join(names),
        facts={
            "best run": names[0],
            "its test accuracy": f"{best.test_accuracy:.2f}%",
            "its validation accuracy": f"{best.valid_accuracy:.2f}%",
        },
        sections={
            "Results": [_results(ranked, names), _differences(ranked, names)],
            "Learning": compared_curves(curves),
        },
    )


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the names of the folders, with as many parents as make them distinct."""
    full = [path.resolve() for path in paths]
    for depth in range(1, max(len(path.parts) for path in full) + 1):
        names = ["/".join(path.parts[-depth:]) for path in full]
        if len(set(names)) == len(set(full)):
            break
    return names


def _results(runs: Sequence[Run], names: Sequence[str]) -> Table:
    return Table(
        title="Best first",
        columns=("run", "method", "test %", "valid %", "classifier", "epochs", "images/s", "time"),
        rows=[
            (
                name,
                run.config.method,
                f"{run.last.test_accuracy:.2f}",
                f"{run.last.valid_accuracy:.2f}",
                layer_range(run.last.sip_first, run.last.sip_last)
                if run.last.has_window
                else "all",
                str(run.last.epoch),
                f"{run.images_per_s:,.0f}",
                duration(run.seconds),
            )
            for name, run in zip(names, runs, strict=True)
        ],
        caption="By validation accuracy of the last epoch. Test accuracy is with the layers "
        "chosen on the validation images.",
        numeric=range(2, 8),
    )


def _differences(runs: Sequence[Run], names: Sequence[str]) -> Block:
    configs = [{**dataclasses.asdict(run.config), "run_dir": None} for run in runs]
    title, different = "Settings that differ", varied(configs)
    if not different:
        return Note(title=title, text="None: all runs have the same settings.")
    rows = [(name, *(setting(each[name], digits=15) for each in configs)) for name in different]
    return Table(title=title, columns=("setting", *names), rows=rows)
