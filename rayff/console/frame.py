"""Parts of the live views, fitted to the width of the terminal, and formatting of values."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import chain
from math import ceil

import numpy as np
from numpy.typing import NDArray
from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rayff.runs.metrics import EpochRecord

LEVELS = "▁▂▃▄▅▆▇█"
BAR_WIDTH = 8
MAX_NUMBERED_LAYERS = 24
"""Deeper networks show ten layers per cell."""


def can_be_live(console: Console) -> bool:
    """Return whether the console is a terminal that can redraw and show Unicode."""
    can_draw = console.is_terminal and not console.is_dumb_terminal
    return can_draw and not console.options.ascii_only


def live_display(console: Console, frame: Callable[[], RenderableType]) -> Live:
    """Return a display at the bottom of the terminal, redrawn twice a second by a thread."""
    return Live(get_renderable=frame, console=console, refresh_per_second=2)


def duration(seconds: float | None) -> str:
    """Return 4.18 as 4.2 s and 3725 as 1:02:05; ? for None."""
    if seconds is None:
        return "?"
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def percent(value: float | None) -> str:
    """Return 91.5 as 91.50%; - for None."""
    return "-" if value is None else f"{value:.2f}%"


def mean_deviation(values: Sequence[float]) -> str:
    """Return 97.50, or of several values 97.50 ± 0.31: mean and sample standard deviation."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def setting(value: object, digits: int = 4) -> str:
    """Return the value of an option for a table, floats with `digits` significant digits."""
    if value is None:
        return "default"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return ",".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)


def stage_bars(names: Sequence[str], busy: NDArray[np.float64], width: int) -> Table:
    """Return a bar per stage, the busiest with a star: four rows, more where they do not fit."""
    fixed_width = BAR_WIDTH + len("  100%*  ")
    columns = width // (max(map(len, names)) + fixed_width)
    columns = max(1, min(columns, ceil(len(names) / 4)))
    busiest = int(busy.argmax()) if len(names) > 1 and busy.any() else -1
    cells: list[tuple[RenderableType, ...]] = []
    for stage, (name, share) in enumerate(zip(names, busy, strict=True)):
        style, star = ("bold yellow", "*") if stage == busiest else ("cyan", " ")
        bar = ProgressBar(1.0, float(share), BAR_WIDTH, complete_style=style, finished_style=style)
        text = Text(f"{share:4.0%}{star}", style if star == "*" else "")
        cells.append((Text(name, no_wrap=True, overflow="ellipsis"), bar, text))
    table = Table.grid(padding=(0, 1, 0, 0))
    for _ in range(columns):
        table.add_column()
        table.add_column(width=BAR_WIDTH)
        table.add_column(width=len("100%*"), no_wrap=True)
    for start in range(0, len(cells), columns):
        table.add_row(*chain(*cells[start : start + columns]))
    return table


def layer_columns(accuracy: Sequence[float], window: tuple[int, int]) -> Columns:
    """Return each layer's index, level and accuracy, those in the window bold.

    A deep network shows ten layers per cell, with their lowest and highest accuracy.
    """
    low, high = min(accuracy), max(accuracy)
    scale = (len(LEVELS) - 1) / (high - low) if high > low else 0.0
    levels = [
        Text(
            LEVELS[round((value - low) * scale)],
            "bold green" if window[0] <= layer <= window[1] else "dim",
        )
        for layer, value in enumerate(accuracy)
    ]
    if len(accuracy) <= MAX_NUMBERED_LAYERS:
        cells = [
            Text.assemble(
                f"{layer:>2} ", levels[layer], f" {value:5.1f}", style=levels[layer].style
            )
            for layer, value in enumerate(accuracy)
        ]
    else:
        cells = []
        for first in range(0, len(accuracy), 10):
            ten = accuracy[first : first + 10]
            span = f" {min(ten):.0f}-{max(ten):.0f}"
            cells.append(Text.assemble(f"{first:>3} ", *levels[first : first + 10], span))
    return Columns(cells, padding=(0, 2))


def history_table(records: Sequence[EpochRecord], console: Console) -> Table:
    """Return a row per epoch, without the last columns where the console is narrow."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    has_window = records[-1].has_window
    titles = ["epoch", "loss", "valid %", "test %", "window", "images/s", "time"]
    for title in titles:
        if has_window or title != "window":
            table.add_column(title, justify="right", no_wrap=True)
    for record in records:
        table.add_row(
            str(record.epoch),
            f"{record.train_loss:.4f}",
            f"{record.valid_accuracy:.2f}",
            f"{record.test_accuracy:.2f}",
            *([f"{record.sip_first}-{record.sip_last}"] if has_window else []),
            f"{record.images_per_s:,.0f}",
            duration(record.elapsed_s),
        )
    unlimited = console.options.update(width=1000)
    while Measurement.get(console, unlimited, table).maximum > console.width:
        table.columns.pop()
    return table
