"""The report of a search: its trials, accuracy by setting, learning curves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from rayff.config.text import plural
from rayff.console.frame import duration, mean_deviation, percent, setting
from rayff.report.figures_layers import compared_layers
from rayff.report.figures_learning import compared_curves
from rayff.report.page import Block, Note, Page, Table, picture
from rayff.report.reader import Trial, by_setting, varied
from rayff.report.style import BLUE, ORANGE, shorten

LOG_RATIO = 20
"""Values that span more than this factor get a logarithmic axis."""
MAX_TICKS = 6
"""Up to this many distinct values each has its own tick."""


def search_page(folder: Path, trials: Sequence[Trial]) -> Page:
    """Return the page of a search; `trials` are sorted, best first."""
    best = trials[0]
    settings = varied([trial.config for trial in trials])
    done = [trial for trial in trials if trial.valid_accuracy is not None]
    return Page(
        title=f"Search of {plural(len(trials), 'trial')}",
        subtitle=str(folder),
        facts={
            "best trial": best.trial,
            "its validation accuracy": percent(best.valid_accuracy),
            "its test accuracy": percent(best.test_accuracy),
            "trials with a result": f"{len(done)} of {len(trials)}",
        },
        sections={
            "Trials": [_results(trials, settings), *_by_seed(done)],
            "Accuracy by setting": _by_setting(done, settings),
            "Learning": _learning(trials),
        },
    )


def _results(trials: Sequence[Trial], settings: Sequence[str]) -> Table:
    return Table(
        title="Best first",
        columns=("trial", "status", "valid", "test", "epochs", "time", *settings),
        rows=[
            (
                trial.trial,
                trial.status,
                percent(trial.valid_accuracy),
                percent(trial.test_accuracy),
                "-" if trial.epoch is None else str(trial.epoch),
                "-" if trial.seconds is None else duration(trial.seconds),
                *(setting(trial.config.get(name)) for name in settings),
            )
            for trial in trials
        ],
        caption="By validation accuracy.",
        numeric=range(2, 6),
    )


def _by_seed(done: Sequence[Trial]) -> list[Block]:
    """Return means over the seeds of each setting, where there are several."""
    groups = _groups(done)
    if len(groups) == len(done):
        return []
    groups.sort(key=lambda group: -fmean(trial.valid_accuracy or 0.0 for trial in group[1]))
    return [
        Table(
            title="By setting",
            columns=("setting", "trials", "valid %", "test %"),
            rows=[
                (
                    name,
                    str(len(trials)),
                    mean_deviation(
                        [t.valid_accuracy for t in trials if t.valid_accuracy is not None]
                    ),
                    mean_deviation(
                        [t.test_accuracy for t in trials if t.test_accuracy is not None]
                    ),
                )
                for name, trials in groups
            ],
            caption="Mean and sample standard deviation over the seeds.",
            numeric=range(1, 4),
        )
    ]


def _groups(trials: Sequence[Trial]) -> list[tuple[str, list[Trial]]]:
    """Return the trials by their settings without the seed."""
    settings = [{n: v for n, v in trial.config.items() if n != "seed"} for trial in trials]
    names = [trial.trial for trial in trials]
    return [(n, [trials[place] for place in where]) for n, where in by_setting(settings, names)]


def _by_setting(done: Sequence[Trial], settings: Sequence[str]) -> list[Block]:
    if not done or not settings:
        reason = "no trial has a result yet" if not done else "all trials have the same settings"
        return [Note(title="Accuracy by setting", text=f"Not drawn: {reason}.")]
    caption = f"A point per trial; the best ({done[0].trial}) is circled."
    return [
        picture(f"by-{re.sub('[^A-Za-z0-9_]+', '-', name)}", name, caption, 3.0,
                draw_setting, done, name)
        for name in settings
    ]  # fmt: skip


def draw_setting(figure: Figure, trials: Sequence[Trial], name: str) -> None:
    """Draw validation accuracy against one setting, on a linear, log or categorical axis."""
    values = [trial.config.get(name) for trial in trials]
    accuracy = [trial.valid_accuracy or 0.0 for trial in trials]
    axes = figure.subplots()
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        places = [float(value) for value in values if value is not None]
        if min(places) > 0 and max(places) / min(places) > LOG_RATIO:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        elif len(set(places)) <= MAX_TICKS:
            axes.set_xticks(sorted(set(places)))
    else:
        words = sorted(set(map(setting, values)))
        places = [float(words.index(setting(value))) for value in values]
        labels = [shorten(word, 16) for word in words]
        rotation = 90 if sum(map(len, labels)) > 50 else 0
        axes.set_xticks(range(len(words)), labels, rotation=rotation)
        axes.set_xlim(-0.5, len(words) - 0.5)
    axes.margins(y=0.1)
    axes.scatter(places, accuracy, color=BLUE, s=28, alpha=0.75, linewidths=0)
    axes.scatter(places[:1], accuracy[:1], s=110, facecolors="none", edgecolors=ORANGE, lw=2)
    axes.set_xlabel(name)
    axes.set_ylabel("validation accuracy (%)")


def _learning(trials: Sequence[Trial]) -> list[Block]:
    curves = [(trial.trial, trial.records) for trial in trials if trial.records]
    damaged = [Note(title=f"No curve of {t.trial}", text=t.error) for t in trials if t.error]
    if curves:
        groups = _groups([trial for trial in trials if trial.records])
        layers = [(name, [trial.records[-1] for trial in group]) for name, group in groups]
        return [*compared_curves(curves), *compared_layers(layers), *damaged]
    reason = "no trial's run directory was found, or none can be read"
    return [Note(title="Learning curves", text=f"Not drawn: {reason}."), *damaged]
