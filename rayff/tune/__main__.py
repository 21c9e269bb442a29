"""python -m rayff.tune: searches over trainings with Ray Tune."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro
from rich.console import Console
from rich.text import Text

from rayff.cli import parse, run_command
from rayff.config.errors import UserError, nearest
from rayff.config.train_config import TrainConfig

if TYPE_CHECKING:
    from rayff.tune.search import SearchResult

DESCRIPTION = """\
Search over trainings with Ray Tune: each trial is a training in its own run directory.

SPACE is a small Python file, or the name of one in tune_spaces/ (quick, learning_rate,
width_depth, stages, paper_table1). It is your own code and is run as such.

Examples:
  python -m rayff.tune quick
  python -m rayff.tune paper_table1 --data-dir DATA --epochs 3 --limit 2000
  python -m rayff.tune learning_rate --samples 8 --set task=mnist --data-dir DATA
  python -m rayff.tune --run-dir runs/quick-20261124-153500 --resume
"""


@dataclass(frozen=True, kw_only=True)
class TuneCommand:
    """The flags."""

    space: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="SPACE")]] = None
    """The search space: a file, or a name. With --resume it is known."""
    run_dir: str | None = None
    """The search's folder. Default: runs/SPACE-DATE-TIME."""
    resume: bool = False
    """Go on with the search in --run-dir: finished trials stay, unfinished and failed ones go on
    from their last checkpoints."""
    scheduler: Literal["asha", "pbt", "none"] | None = None
    """Who ends trials early: asha stops the worse ones, pbt lets them go on from the better ones'
    checkpoints. Default: the space's own."""
    search: Literal["random", "optuna"] = "random"
    """Who chooses the points: random draws and grids, or Optuna by the results so far."""
    samples: int | None = None
    """How often to draw, or to go through the grid. Default: the space's own."""
    seeds: int = 1
    """Trials of each point, with as many seeds from --set seed=N (or 0) on."""
    max_concurrent: int | None = None
    """Trials at a time at most. Default: as many as the cluster holds."""
    data_dir: str | None = None
    """Folder of the tasks' data, for all trials."""
    epochs: int | None = None
    """Epochs of all trials. Default: the space's own."""
    limit: int | None = None
    """Images of each split to use at most, in all trials."""
    logger: str | None = None
    """Who gets the metrics of all trials: tensorboard (in their run directories), mlflow, wandb,
    with commas between them, or none. Default: tensorboard."""
    set: tyro.conf.UseAppendAction[
        tuple[Annotated[str, tyro.conf.arg(metavar="OPTION=VALUE")], ...]
    ] = ()
    """Any other option of a training for all trials, such as stages=2; may be repeated."""

    def __post_init__(self) -> None:
        for name in ("samples", "seeds", "max_concurrent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be 1 or more, not {value}")
        if not self.resume:
            if self.space is None:
                raise UserError("name a search space, such as quick; --help tells more")
            return
        if self.run_dir is None:
            raise UserError("--resume needs --run-dir: the folder of the search to go on with")
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        changed = [name for name, default in defaults.items() if getattr(self, name) != default]
        if extra := [name for name in changed if name not in ("run_dir", "resume")]:
            flags = ("SPACE" if n == "space" else f"--{n.replace('_', '-')}" for n in extra)
            raise UserError(f"a resumed search stays what it was: leave out {', '.join(flags)}")

    def options(self) -> dict[str, Any]:
        """Return the options that hold for all trials."""
        flags = {name: getattr(self, name) for name in ("data_dir", "epochs", "limit", "logger")}
        return {
            **{name: value for name, value in flags.items() if value is not None},
            **read_options(self.set),
        }


def read_options(texts: Sequence[str]) -> Mapping[str, Any]:
    """Return the options of OPTION=VALUE texts, with the types that a run has."""
    known = {f.name: f for f in dataclasses.fields(TrainConfig)}
    options = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_")
        if not equals or name not in known or name == "run_dir":
            raise UserError(
                f"--set {text}: give OPTION=VALUE with an option of a training"
                f"{nearest(name, known)}"
            )
        flag = "--" + name.replace("_", "-")
        args = [f"{flag}={value}"]
        if known[name].type == "bool":
            args = {"true": [flag], "false": []}.get(value.lower(), args)
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # it would speak of the flag
                run = parse(TrainConfig, module="rayff.tune", description=DESCRIPTION, args=args)
        except SystemExit:
            raise UserError(
                f"--set {text}: {name} must be {_wanted(name)}, not {value!r}"
            ) from None
        options[name] = getattr(run, name)
    return options


def _wanted(name: str) -> str:
    """Return in words what values an option of a training takes."""
    kind = get_type_hints(TrainConfig)[name]
    kinds = get_args(kind) if type(None) in get_args(kind) else (kind,)
    if get_origin(kinds[0]) is Literal:
        return f"one of {', '.join(get_args(kinds[0]))}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(kinds[0], "whole numbers with commas between them")


def main(args: Sequence[str]) -> int:
    """Search; return 0, 1 where a trial failed, or 128 plus the number of a signal."""
    command = parse(TuneCommand, module="rayff.tune", description=DESCRIPTION, args=args)
    from rayff.console.search_view import SearchView, search_view
    from rayff.tune.search import resume_search, start_search
    from rayff.tune.space import load_space

    def watch(header: str, varied: Sequence[str], num_trials: int | None) -> SearchView:
        return search_view(Console(highlight=False), header, varied, num_trials)

    if command.resume:
        return show(resume_search(Path(command.run_dir or ""), watch))
    space = load_space(command.space or "")
    options = command.options()
    changes: dict[str, Any] = {
        "num_samples": command.samples,
        "scheduler": command.scheduler,
        "max_concurrent": command.max_concurrent,
    }
    space = dataclasses.replace(
        space, **{name: value for name, value in changes.items() if value is not None}
    )
    first = options.get("seed", 0)
    seeds = range(first, first + command.seeds) if command.seeds > 1 else ()
    space = space.fixed(options, seeds)
    if command.run_dir == "":
        raise UserError("--run-dir '' names no folder: name one, or leave the option out")
    folder = command.run_dir or f"runs/{space.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    return show(start_search(space, command.search, Path(folder), watch))


def show(result: SearchResult) -> int:
    """Print the table, the best trial and the failed ones; return the exit code."""
    from rayff.tune.results import best, ranked, results_table
    from rayff.tune.search import published_of

    search, console = result.search, Console(highlight=False)
    groups = ranked(result.rows, search.varied, search.metric, search.mode)
    table = results_table(groups, metric=search.metric, published=published_of(search))
    console.print()
    console.print(table, crop=False, soft_wrap=not console.is_terminal)
    winner = best(groups, search.metric, search.mode)
    if winner is not None:
        console.print(Text(f"best: {winner.trial}, {winner.run_dir}", "bold"), soft_wrap=True)
    failed = [row for row in result.rows if row.status == "failed"]
    for row in failed:
        console.print(Text(f"{row.trial} failed: {row.error}", "red"), soft_wrap=True)
    if result.stopped_by is not None:
        return 128 + result.stopped_by
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(main)
