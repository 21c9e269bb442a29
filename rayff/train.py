"""The command `rayff train`: trains a network as a pipeline of Ray actors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import tyro

from rayff.cli import parse, run_command
from rayff.config.errors import UserError
from rayff.config.resolved import resolve_recipe, with_recipe, without_excluded
from rayff.config.train_config import TrainConfig
from rayff.trainer import Backend, Trainer

DESCRIPTION = """\
Train a network whose layers learn by local losses, as a pipeline of Ray actors.

Examples:
  rayff train
  rayff train --arch tinycnn --task mnist --download --epochs 3
  rayff train --run-dir runs/first --stages 2
  rayff train --run-dir runs/first --resume
  rayff train --arch resnet --print-config > resnet.yaml
  rayff train --config resnet.yaml --epochs 30

Notes:
- Each stage, a slice of consecutive layers, is an actor; batches stream from
  stage to stage.
- The run joins the cluster that RAY_ADDRESS names. Without it, it starts a
  local Ray instance.
"""


@dataclass(frozen=True, kw_only=True)
class TrainCommand(TrainConfig):
    """The options of a run, and how it starts."""

    backend: Backend = "ray"
    """Where the stages run: as Ray actors, or all of them in this process (local), without Ray."""
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    """Continue the run in --run-dir from its last checkpoint, with the options it has."""
    config: str | None = None
    """YAML or JSON file of options, such as a run's config.json; the command line overrides it."""
    print_config: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the options with all defaults of the task and architecture filled in, as YAML for
    --config, and exit."""


def read_flags(args: Sequence[str]) -> TrainCommand:
    """Return the options of the command line.

    They override those in the file of --config or, with --resume, those of the resumed run.
    """
    asked = _parse(args, TrainCommand())
    if asked.config is None and not asked.resume:
        return asked
    from rayff.config_file import read_options
    from rayff.runs.run_directory import RunDirectory, resumed_folder
    from rayff.runs.run_lock import locked
    from rayff.runs.storage import Storage

    folder = resumed_folder(asked) if asked.resume else None
    if asked.resume and asked.config is not None:
        raise UserError("--config and --resume exclude each other: a run has its own options")
    if folder is not None and asked.storage_path is not None:
        with locked(folder, on_wait=print) as path:
            Storage(path, asked.storage_path).pull()
    saved = (
        read_options(Path(asked.config or ""))
        if folder is None
        else RunDirectory(folder).read_config()
    )
    if asked.resume and saved.stream and "--no-stream" in args:
        raise UserError(
            "--no-stream: the run streams its images, and a resumed run keeps that; leave the "
            "option out, or start a new --run-dir"
        )
    given = {
        word.partition("=")[0].lstrip("-").replace("-", "_").removeprefix("no_")
        for word in args
        if word.startswith("--")
    }
    kept = without_excluded(saved, asked, given)
    return _parse(args, TrainCommand(**kept.to_dict()))


def _parse(args: Sequence[str], default: TrainCommand) -> TrainCommand:
    return parse(
        TrainCommand, module="rayff.train", description=DESCRIPTION, args=args, default=default
    )


def main(args: Sequence[str]) -> int:
    """Train; return 0, or 128 plus the number of the signal that stopped the run early."""
    command = read_flags(args)
    config = TrainConfig(**{f.name: getattr(command, f.name) for f in fields(TrainConfig)})
    if command.print_config:
        from rayff.config_file import as_yaml
        from rayff.data.tasks import task_recipe

        recipe = resolve_recipe(config, task_recipe(config.task))
        print(as_yaml(with_recipe(config, recipe)), end="")
        return 0
    result = Trainer(config, backend=command.backend).fit(resume=command.resume)
    return 0 if result.stopped_by is None else 128 + result.stopped_by


if __name__ == "__main__":
    run_command(main)
