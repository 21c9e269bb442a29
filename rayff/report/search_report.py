"""The report of a search: accuracy against each varied setting, and the curves of all trials."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from rayff.console.frame import duration
from rayff.report.comparison import learning
from rayff.report.page import Block, Note, Page, Section, Table, picture, shown
from rayff.report.sources import Trial, varied
from rayff.report.style import BLUE, ORANGE

LOG_RATIO = 20
"""Numbers that reach over more than this factor are shown on a logarithmic scale."""
MAX_MARKED = 6
"""Up to so many different numbers each has its own mark on the axis."""


def search_page(folder: Path, trials: Sequence[Trial]) -> Page:
    """Return the page of a search; `trials` come best first."""
    best = trials[0]
    settings = varied([trial.config for trial in trials])
    done = [trial for trial in trials if trial.valid_accuracy is not None]
    return Page(
        title=f"Search of {len(trials)} trials",
        subtitle=str(folder),
        facts=[
            ("best trial", best.name),
            ("its validation accuracy", percent(best.valid_accuracy)),
            ("its test accuracy", percent(best.test_accuracy)),
            ("trials with a result", f"{len(done)} of {len(trials)}"),
        ],
        sections=[
            Section(title="Trials", blocks=[_results(trials, settings)]),
            Section(title="Accuracy by setting", blocks=_by_setting(done, settings)),
            Section(title="Learning", blocks=_learning(trials)),
        ],
    )


def percent(value: float | None) -> str:
    """Return an accuracy, or a dash where there is none."""
    return "-" if value is None else f"{value:.2f}%"


def _results(trials: Sequence[Trial], settings: Sequence[str]) -> Table:
    return Table(
        title="Best first",
        columns=("trial", "status", "valid", "test", "epochs", "time", *settings),
        rows=tuple(
            (
                trial.name,
                trial.status,
                percent(trial.valid_accuracy),
                percent(trial.test_accuracy),
                "-" if trial.epoch is None else str(trial.epoch),
                "-" if trial.seconds is None else duration(trial.seconds),
                *(short_value(trial.config.get(name)) for name in settings),
            )
            for trial in trials
        ),
        caption="By validation accuracy.",
        numbers=frozenset({2, 3, 4, 5}),
    )


def short_value(value: Any) -> str:
    """Return a setting of a trial, numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else shown(value)


def _by_setting(done: Sequence[Trial], settings: Sequence[str]) -> list[Block]:
    if not done or not settings:
        why = "no trial has a result yet" if not done else "all trials have the same settings"
        return [Note(title="Accuracy by setting", text=f"Not drawn: {why}.")]
    return [
        picture(
            f"by-{re.sub(r'[^A-Za-z0-9_]+', '-', name)}",
            name,
            f"A point a trial, the best ({done[0].name}) ringed.",
            partial(draw_setting, trials=done, name=name),
        )
        for name in settings
    ]


def draw_setting(figure: Figure, trials: Sequence[Trial], name: str) -> None:
    """Draw the validation accuracy of each trial against one setting; the best comes first."""
    values = [trial.config.get(name) for trial in trials]
    accuracy = [trial.valid_accuracy or 0.0 for trial in trials]
    axes = figure.subplots()
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        places = [float(value) for value in values if value is not None]
        if min(places) > 0 and max(places) / min(places) > LOG_RATIO:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        elif len(set(places)) <= MAX_MARKED:
            axes.set_xticks(sorted(set(places)))
    else:
        words = sorted({shown(value) for value in values})
        places = [float(words.index(shown(value))) for value in values]
        axes.set_xticks(range(len(words)), words)
        axes.set_xlim(-0.5, len(words) - 0.5)
    axes.scatter(places, accuracy, color=BLUE, s=28, alpha=0.75, linewidths=0)
    axes.scatter(places[:1], accuracy[:1], s=110, facecolors="none", edgecolors=ORANGE, lw=2)
    axes.set_xlabel(name)
    axes.set_ylabel("validation accuracy (%)")


def _learning(trials: Sequence[Trial]) -> list[Block]:
    curves = [(trial.name, trial.records) for trial in trials if trial.records]
    damaged = [
        Note(title=f"No curve of {trial.name}", text=trial.damage)
        for trial in trials
        if trial.damage
    ]
    if not curves:
        why = "no trial's run directory is there, or none can be read"
        return [Note(title="Learning curves", text=f"Not drawn: {why}."), *damaged]
    return [*learning(curves), *damaged]
