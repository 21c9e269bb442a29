"""What the reports read: a run's directory, or a search's with one row a trial."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.runs.metrics import METRICS_FILE, EpochRecord, read_metrics
from rayff.runs.run_directory import RunDirectory

RESULTS = "results.parquet"
"""The file that makes a folder the result of a search."""
COLUMNS = {"trial", "run_dir", "status", "config", "epoch", "valid_accuracy", "test_accuracy"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run directory as a report needs it."""

    path: Path
    spec: TrainConfig
    records: list[EpochRecord]
    """At least one."""

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def last(self) -> EpochRecord:
        """The newest epoch, whose window the model has."""
        return self.records[-1]

    @property
    def seconds(self) -> float:
        """Seconds of all epochs together."""
        return sum(record.elapsed_s for record in self.records)

    @property
    def images_per_s(self) -> float:
        """Training images a second, the median of the epochs."""
        speeds = sorted(record.images_per_s for record in self.records)
        return speeds[len(speeds) // 2]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One row of a search's results."""

    name: str
    run_dir: Path
    status: str
    config: dict[str, Any]
    epoch: int | None
    valid_accuracy: float | None
    """Percent; None where no epoch was finished."""
    test_accuracy: float | None
    seconds: float | None
    records: list[EpochRecord]
    """Of its run directory; none where that is not there any more, or is damaged."""
    damage: str = ""
    """Why its epochs cannot be read, where that is so."""


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: it is none, its first epoch is not complete, or its files are damaged.
    """
    if path.is_dir() and not os.listdir(path):
        raise UserError(f"{path} is empty: give the folder of a run, such as runs/first")
    spec = RunDirectory(path).read_config()
    metrics = path / METRICS_FILE
    if not metrics.exists():
        raise UserError(
            f"{path} has no metrics yet: its first epoch was not finished; wait for it, or go on "
            f"with --run-dir {path} --resume"
        )
    return Run(path=path, spec=spec, records=read_records(metrics))


def read_records(metrics: Path) -> list[EpochRecord]:
    """Read the epochs of a run, of which there is at least one.

    Raises:
        UserError: they are damaged, or there are none.
    """
    records = read_metrics(metrics)
    if not records:
        raise UserError(f"{metrics} has no rows: train for an epoch first")
    num_layers = len(records[0].layer_loss)
    for record in records:
        by_layer = (record.layer_loss, record.layer_valid_accuracy, record.layer_test_accuracy)
        if (
            any(len(values) != num_layers for values in by_layer)
            or [len(row) for row in record.sip_accuracy] != [num_layers] * num_layers
            or len(record.stage_busy) != len(record.cuts) + 1
        ):
            raise UserError(
                f"{metrics} is damaged: the numbers of epoch {record.epoch} do not go together; "
                "move it away and train again"
            )
    return records


def is_search(path: Path) -> bool:
    """Say whether a folder is the result of a search."""
    return (path / RESULTS).is_file()


def read_search(path: Path) -> list[Trial]:
    """Read the trials of a search's folder, with the epochs of those whose runs are there.

    Raises:
        UserError: the results are damaged, or there are none.
    """
    results = path / RESULTS
    try:
        rows = pq.read_table(results).to_pylist()
        missing = COLUMNS - set(rows[0]) if rows else COLUMNS
        if missing:
            raise ValueError(f"it has no {', '.join(sorted(missing))}" if rows else "no rows")
        trials = [_trial(row, path) for row in rows]
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{results} is no result of a search: {reason}; search again") from error
    return sorted(trials, key=lambda trial: -_score(trial))


def _trial(row: dict[str, Any], folder: Path) -> Trial:
    config = json.loads(row["config"])
    if not isinstance(config, dict):
        raise ValueError(f"the config of trial {row['trial']} is no JSON object")
    run_dir = Path(str(row["run_dir"]))
    if not run_dir.is_dir():  # the search was moved as a whole
        run_dir = folder / run_dir.name
    metrics = run_dir / METRICS_FILE
    records, damage = [], ""
    try:
        records = read_records(metrics) if metrics.is_file() else []
    except UserError as error:  # the other trials are still worth a report
        damage = str(error)
    return Trial(
        name=str(row["trial"]),
        run_dir=run_dir,
        status=str(row["status"]),
        config=config,
        epoch=None if row["epoch"] is None else int(row["epoch"]),
        valid_accuracy=_number(row["valid_accuracy"]),
        test_accuracy=_number(row["test_accuracy"]),
        seconds=_number(row.get("seconds")),
        records=records,
        damage=damage,
    )


def _number(value: Any) -> float | None:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def _score(trial: Trial) -> float:
    return -1.0 if trial.valid_accuracy is None else trial.valid_accuracy


def varied(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the settings that are not the same everywhere, in their order."""
    names = list(dict.fromkeys(name for config in configs for name in config))
    return [
        name
        for name in names
        if len({json.dumps(config.get(name), sort_keys=True) for config in configs}) > 1
    ]
