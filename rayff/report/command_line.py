"""The command line that trains a run again."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from rayff.config.train_config import TrainConfig

TRAIN = "python -m rayff.train"


def from_config(path: Path) -> str:
    """Return the command that reads the run's own config.json."""
    return f"{TRAIN} --config {shlex.quote(str(path / 'config.json'))}"


def from_flags(run: TrainConfig) -> str:
    """Return the command that names every setting that is no default."""
    default = TrainConfig()
    words = []
    for field in dataclasses.fields(TrainConfig):
        value = getattr(run, field.name)
        shown = field.name in ("arch", "task", "seed") or value != getattr(default, field.name)
        if not shown or field.name == "run_dir":
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag)
        elif isinstance(value, tuple):
            words += [flag, ",".join(map(str, value))]
        else:
            words += [flag, str(value)]
    return f"{TRAIN} {shlex.join(words)}"
