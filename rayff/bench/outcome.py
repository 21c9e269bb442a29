"""What all benchmarks share: the machine, medians, tables and the file of figures."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rayff.config.errors import UserError
from rayff.runs.files import write_atomically


def machine() -> dict[str, Any]:
    """Return what a figure must not be read without."""
    capable = {
        "avx512": torch.backends.cpu.get_cpu_capability() == "AVX512",
        "amx": bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()),
    }
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        **capable,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": version("ray"),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def in_turns(works: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Do every work once to warm up, then in turns; return what each measured, by name.

    In turns, so that a disturbance of the machine meets all of them.
    """
    for work in works.values():
        work()
    measured: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            measured[name].append(work())
    return measured


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(statistics.median(values))


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """Return the median with the least and the most, such as "3.21 (3.10-3.60)"."""
    low, mid, high = (
        f"{value * scale:.{digits}f}" for value in (min(values), median(values), max(values))
    )
    return f"{mid} ({low}-{high})"


@dataclass
class Outcome:
    """The tables and figures of one benchmark."""

    name: str
    settings: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=machine)

    def table(self, title: str, *columns: str) -> Table:
        """Add a table; its first column is text, the others are figures."""
        made = Table(title=title, title_justify="left")
        for position, column in enumerate(columns):
            made.add_column(column, justify="left" if position == 0 else "right", no_wrap=True)
        self.tables.append(made)
        return made

    def show(self) -> None:
        """Print the machine, the tables and the notes."""
        console = Console(highlight=False)
        if not console.is_terminal:  # a pipe has no width to keep to
            console = Console(highlight=False, width=240)
        about = self.about
        units = [name for name in ("avx512", "amx") if about[name]] or ["no AVX-512, no AMX"]
        console.print(
            f"{about['processor']}, {about['cores']} cores ({', '.join(units)}), "
            f"GPU: {about['gpu'] or 'none'}, threads: {about['threads']}; "
            f"Python {about['python']}, torch {about['torch']}, Ray {about['ray']}; "
            f"{about['date']}"
        )
        for table in self.tables:
            console.print()
            console.print(table)
        for note in self.notes:
            console.print(note)

    def save(self, path: str | None) -> None:
        """Write the figures as JSON, where a file is named."""
        if path is None:
            return
        data = {
            "benchmark": self.name,
            "machine": self.about,
            "settings": self.settings,
            **self.figures,
            "notes": self.notes,
        }
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(path), json.dumps(data, indent=1).encode() + b"\n")
        except OSError as error:
            raise UserError(
                f"--save {path} cannot be written: {error.strerror}; name another file"
            ) from error


def check_save(path: str | None) -> None:
    """Raise a UserError where a file cannot be written, before the work is done."""
    if path is not None and (Path(path).is_dir() or not os.access(_existing(Path(path)), os.W_OK)):
        raise UserError(f"--save {path} cannot be written; name another file")


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return path if path.exists() else _existing(path.absolute().parent)


def at_least_one(**options: int) -> None:
    """Raise a UserError for a count below 1."""
    for name, value in options.items():
        if value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be 1 or more, not {value}")
