"""The run directory: all files that a training writes."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.runs.files import is_aside, write_atomically
from rayff.runs.run_lock import LOCK

CONFIG = "config.json"
SEARCH = "search.json"
"""The file of a search's folder that describes the search."""
BEST = "best"
"""The folder of a run with the model of its best epoch by validation."""
BEST_RECORD = "best.json"
"""Its file with the epoch and the accuracies."""
TRIALS = "trials"
"""The folder of a search that holds the run directories of its trials."""


@dataclass(frozen=True)
class RunDirectory:
    """A folder with config.json, metrics, checkpoints/, model.safetensors, architecture.json."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the run among others; a trial's begins with its search."""
        path = Path(os.path.abspath(self.path))
        return f"{path.parents[1].name}/{path.name}" if path.parent.name == TRIALS else path.name

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def check_new(self) -> None:
        """Raise a UserError where the folder already holds something."""
        try:
            is_file = self.path.exists() and not self.path.is_dir()
            is_empty = is_file or not self.path.exists() or not any(self._contents())
        except OSError as error:
            raise UserError(
                f"--run-dir {self.path} cannot be read: {error.strerror}; name another folder"
            ) from error
        if is_file:
            raise UserError(f"--run-dir {self.path} is a file; name a folder")
        if (self.path / SEARCH).is_file():
            raise UserError(
                f"--run-dir {self.path} holds a search: continue it with "
                f"{resume_command(self.path)}, or name another folder"
            )
        if not is_empty:
            raise UserError(
                f"--run-dir {self.path} is not empty: add --resume to continue the run in it, "
                "or name another folder"
            )

    def _contents(self) -> Iterator[Path]:
        """Yield the folder's entries that belong to a run."""
        return (path for path in self.path.iterdir() if not is_passing(path))

    def create(self, config: TrainConfig) -> None:
        """Make the folder and write config.json, which `--config` and `--resume` read.

        It does not name the folder, so that it may be moved and its configuration used again.
        """
        data = {key: value for key, value in config.to_dict().items() if key != "run_dir"}
        write_json(self.path, CONFIG, data)

    def read_config(self) -> TrainConfig:
        """Return the run that is in the folder."""
        if not self.path.is_dir():
            raise UserError(f"there is no run directory {self.path}")
        config = self.path / CONFIG
        if not config.is_file():  # also a pipe, which would be waited for
            raise UserError(f"{self.path} is no run directory: it has no config.json")
        return read_config(config)


def is_passing(path: Path) -> bool:
    """Return whether a file is the lock, or one whose writing was interrupted."""
    return path.name == LOCK or is_aside(path)


def resumed_folder(config: TrainConfig) -> Path:
    """Return the folder of the run to continue; UserError where the options name none."""
    if config.run_dir is None:
        raise UserError("--resume needs --run-dir: the folder of the run to continue")
    return Path(config.run_dir)


def resume_command(folder: Path, *options: str) -> str:
    """Return the command that continues the run or search in a folder.

    Args:
        folder: the run directory, or that of the search.
        options: of the command besides --resume.
    """
    command = "tune" if (folder / SEARCH).is_file() else "train"
    return shlex.join(["rayff", command, "--run-dir", str(folder), "--resume", *options])


def write_json(folder: Path, name: str, data: Any) -> None:
    """Write a JSON file, in a folder that is created if it is not there.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / name, json.dumps(data, indent=2).encode() + b"\n")
    except OSError as error:
        raise UserError(
            f"--run-dir {folder} cannot be written: {error.strerror}; name another folder"
        ) from error


def read_json(path: Path) -> Any:
    """Return the JSON in a file; UserError where it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def read_config(path: Path) -> TrainConfig:
    """Return the run that a JSON file describes."""
    return TrainConfig.from_dict(read_json(path), str(path))
