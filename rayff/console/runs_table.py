"""The table of `rayff runs`, fitted to the width of the terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rayff.config.text import plural, printable
from rayff.console.frame import duration
from rayff.runs.listing import Listed

_STYLES = {
    "complete": "green",
    "running": "bold cyan",
    "stopped": "yellow",
    "interrupted": "yellow",
    "unfinished": "yellow",
    "failed": "red",
    "damaged": "red",
}
_RIGHT = {"epochs", "valid %", "test %", "time"}
_DISPENSABLE = ("loss", "task", "arch", "start", "tags", "time", "epochs")
"""Columns that a narrow terminal goes without, the first one first."""


def runs_table(runs: Sequence[Listed], folder: Path, console: Console) -> Table:
    """Return a row for each run or search.

    Args:
        runs: in their order.
        folder: what the paths are relative to.
        console: where it is to be printed.
    """
    rows = [_cells(run, folder) for run in runs]
    titles = list(rows[0])
    for dispensable in _DISPENSABLE:
        table = _table(rows, titles)
        unlimited = console.options.update(width=10_000)
        if Measurement.get(console, unlimited, table).maximum <= console.width:
            return table
        titles.remove(dispensable)
    return _table(rows, titles)


def _table(rows: Sequence[dict[str, Text]], titles: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for title in titles:
        right = "right" if title in _RIGHT else "left"
        table.add_column(title, justify=right, no_wrap=title != "run", overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(row[title] for title in titles))
    return table


def _cells(run: Listed, folder: Path) -> dict[str, Text]:
    path = os.path.relpath(run.path, folder)
    if run.kind == "search":
        done = plural(run.trials or 0, "trial")
    else:
        done = f"{run.epochs_done}/{'?' if run.epochs is None else run.epochs}"
    best = run.best
    shown = {
        "run": run.path.resolve().name if path == "." else path,
        "state": run.state,
        "arch": _last_part(run.arch),
        "task": _last_part(run.task),
        "loss": _last_part(run.loss),
        "epochs": done if run.state != "damaged" else "",
        "valid %": "" if best is None else f"{best.valid_accuracy:.2f}",
        "test %": "" if best is None else f"{best.test_accuracy:.2f}",
        "time": duration(run.seconds) if run.seconds else "",
        "tags": ",".join(run.tags),
        "start": run.began.strftime("%Y-%m-%d %H:%M"),
    }
    cells = {title: Text(printable(text)) for title, text in shown.items()}
    cells["state"].stylize(_STYLES.get(run.state, ""))
    return cells


def _last_part(name: str) -> str:
    """Return the last part of a path, an address or an import path's module."""
    return name.rstrip("/").rpartition("/")[2]
