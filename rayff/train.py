"""python -m rayff.train: trains a Forward-Forward network as a pipeline of Ray actors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from rayff.cli import parse, run_command
from rayff.config.errors import UserError
from rayff.config.resolved import override
from rayff.config.train_config import TrainConfig
from rayff.trainer import Backend, Trainer

DESCRIPTION = """\
Train a Forward-Forward network as a pipeline of Ray actors.

Every layer learns from a loss of its own; groups of layers are actors that stream batches to
one another. Joins the cluster that RAY_ADDRESS names, and else starts a local one.

Examples:
  python -m rayff.train
  python -m rayff.train --arch tinycnn --task mnist --data-dir DATA --epochs 3
  python -m rayff.train --run-dir runs/first --stages 2
  python -m rayff.train --run-dir runs/first --resume
"""


@dataclass(frozen=True, kw_only=True)
class TrainCommand(TrainConfig):
    """The flags: the options of a run, and how it starts."""

    backend: Backend = "ray"
    """Where the stages run: as Ray actors, or all of them in this process (local), without Ray."""
    resume: bool = False
    """Continue the run in --run-dir from its last checkpoint, with the options it has."""
    config: str | None = None
    """JSON file of options, such as a run's config.json; flags on the command line win."""


def read_flags(args: Sequence[str]) -> TrainCommand:
    """Return the run that the command line asks for.

    Flags override the file of --config or, with --resume, the run's own options.
    """
    asked = _parse(args, TrainCommand())
    if asked.config is None and not asked.resume:
        return asked
    from rayff.runs.run_directory import RunDirectory, read_config
    from rayff.runs.storage import Storage

    if asked.resume and asked.run_dir is None:
        raise UserError("--resume needs --run-dir: the folder of the run to continue")
    if asked.resume and asked.config is not None:
        raise UserError("--config and --resume exclude each other: a run has its own options")
    if asked.resume and asked.run_dir is not None and asked.storage_path is not None:
        Storage(Path(asked.run_dir), asked.storage_path).pull()
    saved = (
        RunDirectory(Path(asked.run_dir)).read_config()
        if asked.run_dir is not None and asked.resume
        else read_config(Path(asked.config or ""))
    )
    over = _parse(args, TrainCommand(**saved.to_dict()))
    merged = override(saved, over)
    assert isinstance(merged, TrainCommand)
    return merged


def _parse(args: Sequence[str], default: TrainCommand) -> TrainCommand:
    return parse(
        TrainCommand, module="rayff.train", description=DESCRIPTION, args=args, default=default
    )


def main(args: Sequence[str]) -> int:
    """Train; return 0, or 128 plus the number of the signal that stopped the run early."""
    command = read_flags(args)
    config = TrainConfig(**{f.name: getattr(command, f.name) for f in fields(TrainConfig)})
    result = Trainer(config, backend=command.backend).fit(resume=command.resume)
    return 0 if result.stopped_by is None else 128 + result.stopped_by


if __name__ == "__main__":
    run_command(main)
