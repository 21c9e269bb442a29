"""The pieces of the live console view, as lines of text that fit a given width."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rayff.runs.metrics import EpochRecord

LEVELS = "▁▂▃▄▅▆▇█"
BAR_WIDTH = 8
MAX_NUMBERED_LAYERS = 24
"""Up to here each layer shows its own accuracy; deeper networks show them by tens."""


def can_be_live(console: Console) -> bool:
    """Return whether a console is a terminal that can draw the display."""
    can_draw = console.is_terminal and not console.is_dumb_terminal
    return can_draw and not console.options.ascii_only


def duration(seconds: float | None) -> str:
    """Return 4.18 as 4.2 s and 3725 as 1:02:05."""
    if seconds is None:
        return "?"
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def stage_lines(names: Sequence[str], busy: NDArray[np.float64], width: int) -> list[Table]:
    """Return a small bar a stage, a star behind the busiest; at most four lines if they fit."""
    beside = BAR_WIDTH + len("  100%*   ")
    name_width = min(max(map(len, names)), max(1, width - beside))
    cell_width = name_width + beside
    columns = max(1, min(width // cell_width, -(-len(names) // 4)))
    busiest = int(busy.argmax()) if len(names) > 1 and busy.any() else -1
    lines = []
    for row in range(0, len(names), columns):
        line = Table.grid(padding=(0, 1, 0, 0))
        cells: list[Text | ProgressBar] = []
        for stage in range(row, min(row + columns, len(names))):
            style, star = ("bold yellow", "*") if stage == busiest else ("", " ")
            share = f"{busy[stage]:4.0%}{star}  "
            bar = ProgressBar(
                total=1.0,
                completed=float(busy[stage]),
                width=BAR_WIDTH,
                complete_style=style or "cyan",
                finished_style=style or "cyan",
            )
            name = Text(names[stage])
            name.truncate(name_width, overflow="ellipsis", pad=True)
            cells += [name, bar, Text(share, style)]
        line.add_row(*cells)
        lines.append(line)
    return lines


def layer_lines(accuracy: Sequence[float], window: tuple[int, int], width: int) -> list[Text]:
    """Return each layer's number, level and accuracy, the window's layers bold.

    A deep network's layers stand ten together, with the lowest and the highest accuracy of the
    ten.
    """
    levels = _levels(accuracy)

    def style(layer: int) -> str:
        return "bold green" if window[0] <= layer <= window[1] else "dim"

    cells: list[Text] = []
    if len(accuracy) <= MAX_NUMBERED_LAYERS:
        for layer, value in enumerate(accuracy):
            cells.append(Text(f"{layer:>2} {levels[layer]} {value:5.1f}", style(layer)))
    else:
        for first in range(0, len(accuracy), 10):
            ten = range(first, min(first + 10, len(accuracy)))
            cell = Text(f"{first:>3} ")
            for layer in ten:
                cell.append(levels[layer], style(layer))
            low, high = (f(accuracy[layer] for layer in ten) for f in (min, max))
            cell.append(f" {low:.0f}-{high:.0f}".ljust(8 + 10 - len(ten)))
            cells.append(cell)
    gap = "  "
    columns = max(1, (width + len(gap)) // (max(map(len, cells)) + len(gap)))
    rows = (cells[start : start + columns] for start in range(0, len(cells), columns))
    return [Text(gap).join(row) for row in rows]


def _levels(values: Sequence[float]) -> str:
    """Return one character a value, from the lowest to the highest of them."""
    low, high = min(values), max(values)
    scale = (len(LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(LEVELS[round((value - low) * scale)] for value in values)


def history_table(records: Sequence[EpochRecord], width: int) -> Table:
    """Return one line an epoch under a line of titles; a narrow console lacks the last columns."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    columns = [
        ("epoch", [str(record.epoch) for record in records]),
        ("loss", [f"{record.train_loss:.4f}" for record in records]),
        ("valid %", [f"{record.valid_accuracy:.2f}" for record in records]),
        ("test %", [f"{record.test_accuracy:.2f}" for record in records]),
        *(
            [("window", [f"{record.sip_first}-{record.sip_last}" for record in records])]
            if records[-1].has_window
            else []
        ),
        ("images/s", [f"{record.images_per_s:,.0f}" for record in records]),
        ("time", [duration(record.elapsed_s) for record in records]),
    ]
    rows: list[list[str]] = [[] for _ in records]
    for title, cells in columns:
        width -= max(map(len, (title, *cells))) + 2
        if width < -2:
            break
        table.add_column(title, justify="right", no_wrap=True)
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell)
    for row in rows:
        table.add_row(*row)
    return table
