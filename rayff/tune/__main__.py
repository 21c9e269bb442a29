"""The command `rayff tune`: searches over trainings with Ray Tune."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from rayff.cli import parse, run_command
from rayff.config.activity import activity
from rayff.config.errors import UserError
from rayff.config.option_names import nearest_option
from rayff.config.train_config import TrainConfig
from rayff.console.activity_view import AT_ONCE_S, ActivityView

DESCRIPTION = """\
Search over trainings with Ray Tune: each trial is a training in its own run directory.

Examples:
  rayff tune quick --run-dir runs/search
  rayff tune learning_rate --samples 8 --set task=digits --set stages=2
  rayff tune --run-dir runs/search --resume

Notes:
- SPACE is a Python file, or the name of one in tune_spaces/, such as quick.
- The file is executed: use only spaces that you trust.
"""


@dataclass(frozen=True, kw_only=True)
class TuneCommand:
    """The options."""

    space: tyro.conf.Positional[Annotated[str | None, tyro.conf.arg(metavar="SPACE")]] = None
    """The search space: a file, or a name. With --resume: leave it out."""
    run_dir: str | None = None
    """Folder of the search. Default: runs/SPACE-DATE-TIME."""
    resume: bool = False
    """Resume the search in --run-dir: finished trials stay, unfinished and failed ones resume from
    their last checkpoints."""
    scheduler: Literal["asha", "pbt", "none"] | None = None
    """Scheduler: asha stops the worse trials early, pbt continues them from checkpoints of better
    ones. Default: the space's own."""
    search: Literal["random", "optuna"] = "random"
    """How points are chosen: random draws and grids, or by Optuna from the results so far."""
    samples: int | None = None
    """Draws, or repetitions of the grid. Default: the space's own."""
    seeds: int = 1
    """Trials per point, with consecutive seeds from --set seed=N (or 0) on."""
    max_concurrent: int | None = None
    """Concurrent trials at most. Default: as many as the cluster holds."""
    data_dir: str | None = None
    """Folder of the data sets, for all trials."""
    epochs: int | None = None
    """Epochs of all trials. Default: the space's own."""
    limit: int | None = None
    """Use at most this many images of each split, in all trials."""
    logger: str | None = None
    """Loggers of all trials: {loggers}, with commas between them, or none. Default:
    tensorboard."""
    set: tyro.conf.UseAppendAction[
        tuple[Annotated[str, tyro.conf.arg(metavar="OPTION=VALUE")], ...]
    ] = ()
    """Any other option of rayff train, for all trials, such as stages=2; may be repeated."""

    def __post_init__(self) -> None:
        for name in ("samples", "seeds", "max_concurrent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be 1 or more, not {value}")
        if self.run_dir == "":
            raise UserError("--run-dir '' names no folder: name one, or leave the option out")
        if not self.resume:
            if self.space is None:
                raise UserError("name a search space, such as quick; see rayff tune --help")
            return
        if self.run_dir is None:
            raise UserError("--resume needs --run-dir: the folder of the search to resume")
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        changed = [name for name, default in defaults.items() if getattr(self, name) != default]
        if extra := [name for name in changed if name not in ("run_dir", "resume")]:
            flags = ("SPACE" if n == "space" else f"--{n.replace('_', '-')}" for n in extra)
            raise UserError(f"a resumed search keeps its options: leave out {', '.join(flags)}")


def read_options(texts: Sequence[str]) -> dict[str, Any]:
    """Return the options of OPTION=VALUE texts, with the types that a training has."""
    known = {f.name: f.type for f in dataclasses.fields(TrainConfig) if f.name != "run_dir"}
    flags: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_")
        if not equals or name not in known:
            hint = "" if name in known else nearest_option(name, known)
            raise UserError(f"--set {text}: give OPTION=VALUE with an option of a training{hint}")
        flag = name.replace("_", "-")
        flags[name] = f"--{flag}={value}"
        if known[name] == "bool":
            if value.lower() not in ("true", "false"):
                raise UserError(f"--set {text}: {name} must be true or false, not {value!r}")
            flags[name] = f"--{flag}" if value.lower() == "true" else f"--no-{flag}"
    run = parse(TrainConfig, module="rayff.tune", description="", args=list(flags.values()))
    return {name: getattr(run, name) for name in flags}


def main(args: Sequence[str]) -> int:
    """Search; return 0, 1 where a trial failed, or 128 plus the number of a signal."""
    command = parse(TuneCommand, module="rayff.tune", description=DESCRIPTION, args=args)
    with ActivityView(first_line_s=AT_ONCE_S), activity("loading torch and Ray"):
        from rayff.runs.run_lock import locked
        from rayff.tune.search import resume_search, start_search
        from rayff.tune.space import load_space

    if command.resume:
        with locked(Path(command.run_dir or "").expanduser(), on_wait=print) as folder:
            return resume_search(folder)
    fields = _given(
        num_samples=command.samples,
        scheduler=command.scheduler,
        max_concurrent=command.max_concurrent,
    )
    options = _given(
        data_dir=command.data_dir,
        epochs=command.epochs,
        limit=command.limit,
        logger=command.logger,
    )
    options |= read_options(command.set)
    seed = options.get("seed", 0)
    seeds = range(seed, seed + command.seeds) if command.seeds > 1 else ()
    space = dataclasses.replace(load_space(command.space or ""), **fields).fixed(options, seeds)
    named = command.run_dir or f"runs/{space.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    new_name = command.run_dir is None
    with locked(Path(named).expanduser(), new_name=new_name, on_wait=print) as folder:
        return start_search(space, command.search, folder)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


if __name__ == "__main__":
    run_command(main)
