"""Read run directories and the results of searches for a report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayff.config.errors import UserError
from rayff.config.text import plural
from rayff.config.train_config import TrainConfig
from rayff.console.frame import setting
from rayff.runs.metrics import METRICS_FILE, EpochRecord, read_metrics
from rayff.runs.record import Session, read_sessions
from rayff.runs.run_directory import BEST_RECORD, TRIALS, RunDirectory, resume_command

RESULTS_FILE = "results.parquet"
"""A folder with this file holds a search."""
RESULTS_SCHEMA = pa.schema(
    dict.fromkeys(("trial", "run_dir", "status", "config"), pa.string())
    | {"epoch": pa.int64()}
    | dict.fromkeys(("valid_accuracy", "test_accuracy", "seconds"), pa.float64())
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The config and metrics of a run directory."""

    path: Path
    config: TrainConfig
    records: list[EpochRecord]
    """At least one."""
    sessions: Sequence[Session] = ()
    """Of its record; none where it has no readable one."""

    @property
    def last(self) -> EpochRecord:
        """The newest epoch, whose window the saved model uses."""
        return self.records[-1]

    @property
    def seconds(self) -> float:
        """Sum over all epochs."""
        return sum(record.elapsed_s for record in self.records)

    @property
    def images_per_s(self) -> float:
        """Training images per second, median over the epochs."""
        return median(record.images_per_s for record in self.records)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One row of a search's results."""

    trial: str
    run_dir: str
    status: str
    config: dict[str, Any]
    epoch: int | None
    valid_accuracy: float | None
    """Percent; None where no epoch was finished."""
    test_accuracy: float | None
    seconds: float | None
    records: list[EpochRecord]
    """From its run directory; empty where that is missing or damaged."""
    error: str
    """Why its metrics cannot be read, or nothing."""


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: it is not a run directory, its files are damaged or no epoch is complete.
    """
    config = RunDirectory(path).read_config()
    metrics = path / METRICS_FILE
    if (path / BEST_RECORD).exists():
        raise UserError(f"{path} is the best model of a run: name the run, {path.parent}")
    if not metrics.exists():
        raise UserError(
            f"{path} has no metrics yet: its first epoch was not finished; wait for it, or go on "
            f"with {resume_command(path)}"
        )
    sessions: list[Session] = []
    with suppress(UserError):  # report the rest all the same
        sessions = read_sessions(path)
    return Run(path=path, config=config, records=read_records(metrics), sessions=sessions)


def read_records(metrics: Path) -> list[EpochRecord]:
    """Read the epochs of a run, at least one.

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
                f"{metrics} is damaged: the lists of epoch {record.epoch} differ in length; "
                "move it away and train again"
            )
    return records


def is_search(path: Path) -> bool:
    """Return whether a folder holds a search."""
    return (path / RESULTS_FILE).is_file()


def read_search(path: Path) -> list[Trial]:
    """Read the trials of a search, best first, with the metrics of the run directories found.

    Raises:
        UserError: the results are damaged or empty.
    """
    results = path / RESULTS_FILE
    try:
        table = pq.read_table(results, columns=RESULTS_SCHEMA.names).cast(RESULTS_SCHEMA)
        if not table.num_rows:
            raise ValueError("no rows")
        trials = [_trial(row, path) for row in table.to_pylist()]
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{results} is no result of a search: {reason}; search again") from error
    return sorted(
        trials, key=lambda t: math.inf if t.valid_accuracy is None else -t.valid_accuracy
    )


def _trial(row: dict[str, Any], folder: Path) -> Trial:
    row = {name: None if value != value else value for name, value in row.items()}  # NaN
    row["config"] = json.loads(row["config"])
    if not isinstance(row["config"], dict):
        raise ValueError(f"the config of trial {row['trial']} is no JSON object")
    run_dir = Path(row["run_dir"])
    if not run_dir.is_dir():  # the search's folder was moved
        run_dir = folder / TRIALS / run_dir.name
    metrics = run_dir / METRICS_FILE
    try:
        return Trial(**row, records=read_records(metrics) if metrics.is_file() else [], error="")
    except UserError as error:  # report the other trials all the same
        return Trial(**row, records=[], error=str(error))


def varied(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the settings whose values differ between the configs, in order of appearance."""
    names = dict.fromkeys(name for config in configs for name in config)
    return [name for name in names if len({json.dumps(c.get(name)) for c in configs}) > 1]


def by_setting(
    settings: Sequence[dict[str, Any]], names: Sequence[str]
) -> list[tuple[str, list[int]]]:
    """Return the places of equal settings under a name, those that come first at the front.

    One that is alone keeps its own name of `names`; others have that of what sets them apart.
    """
    groups: dict[str, list[int]] = {}
    for place, options in enumerate(settings):
        groups.setdefault(json.dumps(options, sort_keys=True), []).append(place)
    different = varied([settings[places[0]] for places in groups.values()])
    found = []
    for places in groups.values():
        shown = (f"{name} {setting(settings[places[0]].get(name))}" for name in different)
        shared = f"{', '.join(shown) or 'all'} ({plural(len(places), 'run')})"
        found.append((names[places[0]] if len(places) == 1 else shared, places))
    return found
