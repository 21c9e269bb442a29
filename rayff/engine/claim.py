"""The run directory of a training, held from before its data is read until it has ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rayff.config.train_config import TrainConfig
from rayff.engine.preparation import default_run_dir
from rayff.runs.run_directory import RunDirectory, resumed_folder
from rayff.runs.run_lock import locked


@contextmanager
def claimed(
    config: TrainConfig, *, resume: bool, on_wait: Callable[[str], object] = lambda message: None
) -> Iterator[TrainConfig]:
    """Hold the lock of a run's directory; yield the config that names it.

    A new run without a name gets one that no other has.

    Args:
        config: the user's.
        resume: whether the directory holds the run.
        on_wait: called with a sentence when the lock of another host takes a while.

    Raises:
        UserError: there is nothing to resume, another process works there, or the place cannot be
            written.
    """
    folder = resumed_folder(config) if resume else Path(config.run_dir or default_run_dir(config))
    if resume and config.storage_path is None:
        RunDirectory(folder).read_config()
    with locked(folder, new_name=config.run_dir is None, on_wait=on_wait) as path:
        yield dataclasses.replace(config, run_dir=str(path))
