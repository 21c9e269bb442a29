"""What a benchmark prints and saves: the machine, tables, and figures as JSON."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from rich.table import Table

from rayff.config.errors import UserError
from rayff.console.outlet import ResultConsole
from rayff.kernels.device_class import has_avx512, processor_name
from rayff.runs.files import write_atomically

T = TypeVar("T")

EMULATION = "ATEN_CPU_CAPABILITY ONEDNN_MAX_CPU_ISA MKL_ENABLE_INSTRUCTIONS RAYFF_CXXFLAGS".split()
"""Environment variables that keep libraries and compiler from instructions of the processor."""


def machine() -> dict[str, Any]:
    """Return the hardware and software that figures depend on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "avx512": has_avx512(),
        "amx": bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": version("ray"),
        "date": time.strftime("%Y-%m-%d %H:%M"),
    }


def processor() -> str:
    """Return the processor's name, and how it is kept from some of its instructions."""
    name = processor_name()
    limits = " ".join(f"{each}={os.environ[each]}" for each in EMULATION if os.getenv(each))
    return f"emulated on {name}: {limits}" if limits else name


def in_turns(
    works: Mapping[str, Callable[[], T]], repeats: int, *, warm_up: bool = True
) -> dict[str, list[T]]:
    """Do every work once to warm up, then in turns; return what each measured, by name.

    In turns, so that a disturbance of the machine meets all of them.
    """
    for work in works.values() if warm_up else ():
        work()
    measured: dict[str, list[T]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            measured[name].append(work())
    return measured


def as_text(name: str, value: Any) -> str:
    """Return a figure with the unit that its name implies.

    A list is several measurements, given by median, least and most; but "busy" has one for each
    stage. None is a dash.
    """
    unit = next((unit for pattern, unit in _UNITS.items() if re.search(pattern, name)), _plain)
    if not isinstance(value, list):
        return "-" if value is None else unit(value)
    known = [each for each in value if each is not None]
    if len(value) == 1 and known:
        return unit(known[0])
    if not known or name == "busy":
        return " ".join(map(unit, known)) or "-"
    return f"{unit(median(known))} ({unit(min(known))} to {unit(max(known))})"


def _seconds(value: float) -> str:
    return f"{1000 * value:.4g} ms" if value < 1 else f"{value:.2f} s"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


_UNITS: dict[str, Callable[[Any], str]] = {
    "per_s$": "{:.5g}".format,
    "_s$|seconds": _seconds,
    "bytes$": lambda value: f"{value / 2**20:.0f} MiB",
    "busy|idle|share": "{:.1%}".format,
    "ratio|speedup|ceiling|against": "{:.2f}x".format,
    "accuracy": "{:.2f}%".format,
    "joules": "{:.4g} J".format,
}
"""How figures are shown, by a pattern that their names match."""


@dataclass
class Results:
    """The tables and figures of one benchmark."""

    name: str
    settings: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=machine)
    passed: bool = True
    """Whether what the benchmark checks holds; else its exit code is 1."""

    def table(self, title: str, rows: Sequence[Mapping[str, Any]], columns: str) -> None:
        """Add a table of some figures of each row; the first one is text."""
        table = Table(title=title, title_justify="left")
        names = columns.split()
        for name in names:
            heading = re.sub("_(s|bytes)$", "", name.replace("_per_s", "/s")).replace("_", " ")
            side = "left" if name == names[0] else "right"
            table.add_column(heading, justify=side, no_wrap=True)  # type: ignore[arg-type]
        for row in rows:
            table.add_row(*(as_text(name, row[name]) for name in names))
        self.tables.append(table)

    def show(self) -> None:
        """Print the machine, the tables and the notes."""
        console = ResultConsole(highlight=False, emoji=False)
        if not console.is_terminal:  # a pipe has no width to keep to
            console = ResultConsole(highlight=False, emoji=False, width=240)
        about = self.machine
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

    def save(self, path: str) -> None:
        """Write the figures as JSON."""
        about = {"benchmark": self.name, "machine": self.machine, "settings": self.settings}
        data = {**about, **self.figures, "notes": self.notes}
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(Path(path), json.dumps(data, indent=1).encode() + b"\n")
        except OSError as error:
            raise UserError(
                f"--save {path} cannot be written: {error.strerror}; name another file"
            ) from error
