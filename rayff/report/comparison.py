"""The report of several runs, best first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rayff.config.resolved import deciding_options
from rayff.config.text import layer_range
from rayff.console.frame import duration, mean_deviation, setting
from rayff.report.figures_layers import compared_layers
from rayff.report.figures_learning import compared_curves
from rayff.report.page import Block, Note, Page, Table
from rayff.report.reader import Run, by_setting, varied

OTHER_READOUTS = ("last", "fusion")
"""Columns of results besides the window's."""


def comparison_page(runs: Sequence[Run]) -> Page:
    """Return the page of several runs; the best validation accuracy comes first."""
    ranked = sorted(runs, key=lambda run: -run.last.valid_accuracy)
    names = distinct_names([run.path for run in ranked])
    best = ranked[0].last
    curves = [(name, run.records) for name, run in zip(names, ranked, strict=True)]
    groups = _groups(ranked, names)
    return Page(
        title=f"Comparison of {len(runs)} runs",
        subtitle=", ".join(names),
        facts={
            "best run": names[0],
            "its test accuracy": f"{best.test_accuracy:.2f}%",
            "its validation accuracy": f"{best.valid_accuracy:.2f}%",
        },
        sections={
            "Results": [
                _results(ranked, names),
                *([_by_seed(groups)] if len(groups) < len(ranked) else []),
                _differences(ranked, names),
            ],
            "Learning": compared_curves(curves),
            "Layers": compared_layers([(g.name, [r.last for r in g.runs]) for g in groups]),
        },
    )


@dataclass(frozen=True)
class Group:
    """Runs of one setting, which differ in their seed."""

    name: str
    runs: Sequence[Run]


def _groups(runs: Sequence[Run], names: Sequence[str]) -> list[Group]:
    """Return the runs by setting, that of the best mean validation accuracy first."""
    settings = [deciding_options(run.config) for run in runs]
    found = [
        Group(name, [runs[place] for place in places])
        for name, places in by_setting(settings, names)
    ]
    return sorted(found, key=lambda g: -fmean(run.last.valid_accuracy for run in g.runs))


def _by_seed(groups: Sequence[Group]) -> Table:
    names = dict.fromkeys(name for g in groups for run in g.runs for name in run.last.readouts)
    return Table(
        title="By setting",
        columns=("setting", "runs", "valid %", *(f"{name}, test %" for name in names)),
        rows=[
            (
                group.name,
                str(len(group.runs)),
                mean_deviation([run.last.valid_accuracy for run in group.runs]),
                *(
                    mean_deviation(
                        [run.last.readouts[n] for run in group.runs if n in run.last.readouts]
                    )
                    for n in names
                ),
            )
            for group in groups
        ],
        caption="Runs that differ in their seed alone, or in options that change no result: mean "
        "and sample standard deviation after the last epoch, by readout.",
        numeric=range(1, 3 + len(names)),
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
        columns=(
            *("run", "method", "test %", "valid %", "classifier", *OTHER_READOUTS),
            *("epochs", "images/s", "time"),
        ),
        rows=[
            (
                name,
                run.config.method,
                f"{run.last.test_accuracy:.2f}",
                f"{run.last.valid_accuracy:.2f}",
                layer_range(run.last.sip_first, run.last.sip_last)
                if run.last.has_window
                else "all",
                *(_accuracy(run, name) for name in OTHER_READOUTS),
                str(run.last.epoch),
                f"{run.images_per_s:,.0f}",
                duration(run.seconds),
            )
            for name, run in zip(names, runs, strict=True)
        ],
        caption="By validation accuracy of the last epoch. Test accuracy is with the layers "
        "chosen on the validation images; last and fusion are those of the other readouts.",
        numeric=range(2, 10),
    )


def _accuracy(run: Run, readout: str) -> str:
    found = run.last.readouts.get(readout)
    return "-" if found is None else f"{found:.2f}"


def _differences(runs: Sequence[Run], names: Sequence[str]) -> Block:
    configs = [
        {
            **dataclasses.asdict(run.config),
            **{"run_dir": None, "tags": run.config.tag_names, "notes": run.config.notes or ()},
        }
        for run in runs
    ]
    title, different = "Settings that differ", varied(configs)
    if not different:
        return Note(title=title, text="None: all runs have the same settings.")
    rows = [(name, *(setting(each[name], digits=15) for each in configs)) for name in different]
    return Table(title=title, columns=("setting", *names), rows=rows)
