"""Parts of the live views, fitted to the width of the terminal, and formatting of values."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from itertools import chain
from math import ceil
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rayff.console.notebook import NotebookDisplay

if TYPE_CHECKING:  # they take seconds to import, and a view is to be there before them
    import numpy as np
    from numpy.typing import NDArray

    from rayff.runs.metrics import EpochRecord

LEVELS = "▁▂▃▄▅▆▇█"
BAR_WIDTH = 8
REFRESH_PER_S = 2
MAX_MEMORIES = 4
"""More stages show the sum of their memory."""
MAX_NUMBERED_LAYERS = 24
"""Deeper networks show ten layers per cell."""


def can_be_live(console: Console) -> bool:
    """Return whether the console is a notebook, or a terminal that redraws and shows Unicode."""
    can_draw = console.is_terminal and not console.is_dumb_terminal
    return console.is_jupyter or (can_draw and not console.options.ascii_only)


def live_display(
    console: Console, frame: Callable[[], RenderableType], *, transient: bool = False
) -> Live | NotebookDisplay:
    """Return a display at the bottom of the terminal or the cell, redrawn by a thread.

    Args:
        console: a terminal or notebook.
        frame: called for what to show.
        transient: whether it vanishes at the end.
    """
    if console.is_jupyter:
        return NotebookDisplay(console, frame, transient=transient)
    return Live(
        get_renderable=frame,
        console=console,
        refresh_per_second=REFRESH_PER_S,
        transient=transient,
        redirect_stdout=not console.stderr,  # what goes to standard output is for programs
    )


def duration(seconds: float | None) -> str:
    """Return 4.18 as 4.2 s and 3725 as 1:02:05; ? for None."""
    if seconds is None:
        return "?"
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def whole_seconds(seconds: float) -> str:
    """Return 4.18 as 4 s and 3725 as 1:02:05, for a clock that runs."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds)


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


def layer_sections(losses: Sequence[float], newest: EpochRecord | None) -> list[Group]:
    """Return each layer's loss, and before it its accuracy once an epoch is complete.

    Args:
        losses: of each layer, lately.
        newest: the newest epoch; None before the first.
    """
    many = len(losses) > MAX_NUMBERED_LAYERS
    loss = ("{:.2f}" if many else "{:.3f}", losses)
    if newest is None:
        return [Group(title_line("loss by layer"), layer_columns([loss]))]
    window = newest.sip_first, newest.sip_last
    accuracy = ("{:.0f}" if many else "{:.1f}", newest.layer_valid_accuracy)
    title = f"(epoch {newest.epoch}, window {window[0]}-{window[1]})"
    if not many:
        columns = layer_columns([accuracy, loss], window)
        return [Group(title_line(f"valid % and loss by layer {title}"), columns)]
    return [
        Group(title_line(f"valid % by layer {title}"), layer_columns([accuracy], window)),
        Group(title_line("loss by layer"), layer_columns([loss], window)),
    ]


def layer_columns(
    values: Sequence[tuple[str, Sequence[float]]], window: tuple[int, int] = (0, -1)
) -> Columns:
    """Return each layer's index, the level of its first value, and its values.

    A deep network shows ten layers per cell, with their lowest and highest value.

    Args:
        values: a format, and a number for each layer.
        window: first and last layer of those that are bold.
    """
    form, first_values = values[0]
    low, high = min(first_values), max(first_values)
    scale = (len(LEVELS) - 1) / (high - low) if high > low else 0.0
    levels = [
        Text(
            LEVELS[round((value - low) * scale)],
            "bold green" if window[0] <= layer <= window[1] else "dim",
        )
        for layer, value in enumerate(first_values)
    ]
    cells = []
    if len(levels) <= MAX_NUMBERED_LAYERS:
        texts = [[each.format(number) for number in numbers] for each, numbers in values]
        widths = [max(map(len, column)) for column in texts]
        for layer, row in enumerate(zip(*texts, strict=True)):
            aligned = (f" {text:>{width}}" for text, width in zip(row, widths, strict=True))
            level = levels[layer]
            cells.append(Text.assemble(f"{layer:>2} ", level, *aligned, style=level.style))
    else:
        for first in range(0, len(levels), 10):
            ten = first_values[first : first + 10]
            span = f" {form.format(min(ten))}-{form.format(max(ten))}"
            cells.append(Text.assemble(f"{first:>3} ", *levels[first : first + 10], span))
    return Columns(cells, padding=(0, 2))


def title_line(text: str, style: str = "") -> Text:
    """Return text for one line, cut where the terminal is narrower."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def flow(words: Iterable[str], width: int) -> list[str]:
    """Return lines of the words, two spaces apart; no word is broken that fits on a line."""
    glued = "  ".join(word.replace(" ", "\xa0") for word in words)
    return [line.replace("\xa0", " ") for line in textwrap.wrap(glued, width)]


def memory(sizes: Sequence[int]) -> list[str]:
    """Return the memory of the stages in words, or nothing where it is not known."""
    held = [size / 1e9 for size in sizes if size]
    if not held:
        return []
    if len(held) > MAX_MEMORIES:
        return [f"memory {sum(held):.1f} GB in {len(held)} stages"]
    return [f"memory {' + '.join(f'{size:.1f}' for size in held)} GB"]


def time_of_day(moment: datetime, now: datetime) -> str:
    """Return 14:32, with the day where that is another one."""
    same_day = moment.date() == now.date()
    return f"{moment:%H:%M}" if same_day else f"{moment:%a %d %b %H:%M}"


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
