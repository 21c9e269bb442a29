"""The command `rayff runs`: lists runs and searches with their states and accuracies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.text import Text

from rayff.cli import parse, run_command
from rayff.config.text import printable
from rayff.console.outlet import ResultConsole
from rayff.console.runs_table import runs_table
from rayff.runs.listing import Listed, list_runs

DESCRIPTION = """\
List runs and searches, the newest first, with their states and accuracies.

Examples:
  rayff runs
  rayff runs experiments --tag baseline
  rayff runs --json

States:
  running      a process is at work
  complete     all epochs are trained
  stopped      by a signal or a callback; goes on with --resume
  failed       by an error
  interrupted  its process was killed; goes on with --resume
  unfinished   epochs are left, and there is no run.json; goes on with --resume
  damaged      a file cannot be read

The accuracies are those of the epoch with the best validation accuracy.
"""


@dataclass(frozen=True, kw_only=True)
class RunsCommand:
    """The options."""

    folder: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DIR")]] = "runs"
    """Folder that holds the run directories, at any depth."""
    tag: str | None = None
    """List the runs with this tag alone; with all of several tags with commas between them."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print a JSON list with one object a run or search, with notes and all sessions."""


def main(args: Sequence[str]) -> int:
    """List and print."""
    command = parse(RunsCommand, module="rayff.runs", description=DESCRIPTION, args=args)
    folder = Path(command.folder)
    tags = {tag.strip() for tag in (command.tag or "").split(",")} - {""}
    runs = list_runs(folder, tags)
    if command.json:
        print(json.dumps([_as_json(run) for run in runs], indent=1))
        return 0
    console = ResultConsole(highlight=False, emoji=False)
    if not runs:
        which = f" with the tag {command.tag}" if tags else ""
        console.print(Text(f"no runs{which} in {folder}"), soft_wrap=True)
        return 0
    if not console.is_terminal:
        console.width = 10_000  # nothing is cut
    console.print(runs_table(runs, folder, console))
    for run in runs:
        if run.error:
            console.print(Text(printable(f"damaged: {run.error}"), "red"), soft_wrap=True)
    return 0


def _as_json(run: Listed) -> dict[str, object]:
    return {**dataclasses.asdict(run), "path": str(run.path)}


if __name__ == "__main__":
    run_command(main)
