"""The log of a run: what it prints, as plain lines with their times, in its directory."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime
from io import StringIO, TextIOBase
from pathlib import Path

from rich.console import Console

from rayff.console.run_view import ConsoleCallback
from rayff.engine.run import Run
from rayff.partition.plan import Plan
from rayff.runs.record import LOG


class LogFile(TextIOBase):
    """A text stream that puts the time before each line, and drops what the disk does not take.

    Lines that come before `open` are kept for it.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._begun = ""
        self._lines = StringIO()

    def open(self, path: Path) -> None:
        """Append to this file from now on."""
        self._path = path
        self._append(self._lines.getvalue())
        self._lines = StringIO()

    def write(self, text: str) -> int:
        """Write whole lines; the rest waits for its end."""
        *lines, self._begun = (self._begun + text).split("\n")
        time = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        self._append("".join(f"{time}  {line.rstrip()}\n" for line in lines))
        return len(text)

    def _append(self, lines: str) -> None:
        if self._path is None:
            self._lines.write(lines)
            return
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(lines)


class LogCallback(ConsoleCallback):
    """Writes log.txt.

    Args:
        resume_options: what a command needs besides --resume to go on with the run.
    """

    def __init__(self, resume_options: Sequence[str] = ()) -> None:
        self.file = LogFile()
        console = Console(
            file=self.file,  # type: ignore[arg-type]
            force_terminal=False,
            force_jupyter=False,
            color_system=None,
            emoji=False,
        )
        super().__init__(console, resume_options=resume_options)

    def on_start(self, run: Run, plan: Plan) -> None:
        """Write the header, behind the lines of sessions before."""
        self.file.open(run.directory.path / LOG)
        super().on_start(run, plan)

    def on_end(self, error: BaseException | None) -> None:
        """Write the summary, and the error that ended the run."""
        super().on_end(error)
        if error is not None:
            self._print(f"error: {str(error) or type(error).__name__}")
