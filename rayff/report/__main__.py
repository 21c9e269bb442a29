"""python -m rayff.report: a page with pictures of a run, of several runs, or of a search."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from rayff.cli import parse, run_command
from rayff.config.activity import activity
from rayff.config.errors import UserError
from rayff.console.activity_view import ActivityView

if TYPE_CHECKING:
    from rayff.report.page import Page

DESCRIPTION = """\
Write report.html with figures of a run: accuracy, confusions, timeline of stages.

Examples:
  rayff report runs/first
  rayff report runs/first runs/second

Notes:
- The page needs no other file and no network. Its figures are also written to
  the folder report/, next to it.
- Several runs are compared side by side, in a page in the folder that holds them.
- The folder of a search gives a report on all its trials.
"""


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Command-line flags."""

    runs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN...")]] = ()
    """The run directories, one or more, or a search's folder."""
    out: str | None = None
    """Folder to write report.html and report/ to. Default: the run's own; for several runs the
    folder that holds all of them."""
    data_dir: str | None = None
    """Folder with the task's data. Default: where the run had it."""
    limit: int | None = None
    """Test images to classify at most, for the confusion matrix and the worst mistakes; 0 for
    none. Default: all."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to classify them; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UserError("no run is given: name one run directory or more, such as runs/first")
        if self.limit is not None and self.limit < 0:
            raise UserError(f"--limit must be a number of 0 or more, not {self.limit}")
        if self.out is not None and Path(self.out).exists() and not Path(self.out).is_dir():
            raise UserError(f"--out {self.out} is a file; name a folder")


def main(args: Sequence[str]) -> int:
    """Read the runs, draw the figures and write the page."""
    command = parse(ReportCommand, module="rayff.report", description=DESCRIPTION, args=args)
    folders = [Path(run) for run in command.runs]
    with ActivityView(Console(stderr=True, emoji=False)):
        page = make_page(folders, command)
        path = page.write(beside(folders) if command.out is None else Path(command.out))
    print(path)
    return 0


def make_page(folders: Sequence[Path], command: ReportCommand) -> Page:
    """Return the page of a run, of several or of a search."""
    with activity("loading torch"):
        from rayff.report.comparison import comparison_page
        from rayff.report.reader import is_search, read_run, read_search
        from rayff.report.run_report import run_page
        from rayff.report.search_report import search_page

    searches = [folder for folder in folders if is_search(folder)]
    if searches and len(folders) > 1:
        raise UserError(f"{searches[0]} is a search, which has a report of its own: name it alone")
    if searches:
        return search_page(folders[0], read_search(folders[0]))
    if len(folders) > 1:
        return comparison_page([read_run(folder) for folder in folders])
    data_dir = None if command.data_dir is None else Path(command.data_dir)
    return run_page(
        read_run(folders[0]), data_dir=data_dir, device=command.device, limit=command.limit
    )


def beside(folders: Sequence[Path]) -> Path:
    """Return where a report goes: into a run, or into the folder that holds several runs.

    Runs that have nothing but the root in common have it beside the first one.
    """
    if len(folders) == 1:
        return folders[0]
    parents = [Path(os.path.abspath(folder)).parent for folder in folders]
    common = Path(os.path.commonpath(parents))
    found = parents[0] if common == Path(common.anchor) else common
    here = Path.cwd()
    return found.relative_to(here) if found.is_relative_to(here) else found


if __name__ == "__main__":
    run_command(main)
