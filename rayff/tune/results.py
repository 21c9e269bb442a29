"""Results of a search: a row per trial, the Parquet file, and the table with the best first."""

from __future__ import annotations

import dataclasses
import io
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from rayff.config.train_config import TrainConfig
from rayff.console.frame import duration, setting
from rayff.runs.files import write_atomically
from rayff.runs.metrics import METRICS_FILE, read_metrics
from rayff.runs.run_directory import RunDirectory

Status = Literal["finished", "stopped", "failed", "unfinished"]
"""Stopped: by the scheduler, before its last epoch. Unfinished: the search was interrupted."""

_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("trial", "run_dir", "status", "config")),
        ("epoch", pa.int64()),
        *((name, pa.float64()) for name in ("valid_accuracy", "test_accuracy", "seconds")),
    ]
)


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """Result of one trial; its metrics are those of its newest epoch, None before the first."""

    trial: str
    run_dir: str
    status: Status
    config: Mapping[str, Any]
    """The options that the search gave it."""
    epoch: int
    valid_accuracy: float | None
    test_accuracy: float | None
    score: float | None
    """The metric of the search."""
    seconds: float
    """Of all its epochs."""
    error: str | None
    """The message of a failed trial."""


def trial_row(
    run_dir: Path,
    config: Mapping[str, Any],
    metric: str,
    ended: str | None = None,
    error: BaseException | None = None,
) -> TrialRow:
    """Return the row of a trial, with what its run directory holds.

    Args:
        run_dir: run directory of the trial.
        config: the options that the search gave it.
        metric: the metric of the search.
        ended: "done" or "failed"; None if the search was interrupted before.
        error: why it failed.
    """
    metrics = run_dir / METRICS_FILE
    records = read_metrics(metrics) if metrics.exists() else []
    last = records[-1] if records else None
    status: Status = "failed" if ended == "failed" else "unfinished"
    if ended == "done":
        complete = last and last.epoch == RunDirectory(run_dir).read_config().epochs
        status = "finished" if complete else "stopped"
    lines = str(getattr(error, "cause", None) or error or "").strip().splitlines()
    return TrialRow(
        trial=run_dir.name,
        run_dir=str(run_dir),
        status=status,
        config=config,
        epoch=last.epoch if last else 0,
        valid_accuracy=last.valid_accuracy if last else None,
        test_accuracy=last.test_accuracy if last else None,
        score=getattr(last, metric, None),
        seconds=sum(record.elapsed_s for record in records),
        error=lines[-1] if lines else None,
    )


def write_results(path: Path, rows: Sequence[TrialRow]) -> None:
    """Write a row per trial; the config is JSON, accuracies are in percent."""
    data = [
        {**dataclasses.asdict(row), "config": json.dumps(row.config, sort_keys=True)}
        for row in rows
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(data, schema=_SCHEMA), sink)
    write_atomically(path, sink.getvalue())


def _values(rows: Sequence[TrialRow], column: str = "score") -> list[float]:
    """Return a column of the trials that have an epoch."""
    return [value for row in rows if (value := getattr(row, column)) is not None]


def ranked(rows: Sequence[TrialRow], mode: str) -> list[list[TrialRow]]:
    """Return the trials of each point of the space, which differ only in their seed.

    The point with the best mean score is first, those without a score are last.
    """
    points: dict[str, list[TrialRow]] = {}
    for row in rows:
        point = {name: value for name, value in row.config.items() if name != "seed"}
        points.setdefault(json.dumps(point, sort_keys=True), []).append(row)
    done = [point for point in points.values() if _values(point)]
    done.sort(key=lambda point: statistics.fmean(_values(point)), reverse=mode == "max")
    return [*done, *(point for point in points.values() if not _values(point))]


def best(points: Sequence[Sequence[TrialRow]], mode: str) -> TrialRow | None:
    """Return the best trial of the first point; None if it has no score."""
    sign = 1 if mode == "max" else -1
    scores = [(sign * row.score, row) for row in next(iter(points), []) if row.score is not None]
    return max(scores, key=lambda pair: pair[0])[1] if scores else None


def spread(values: Sequence[float]) -> str:
    """Return 97.50, or of several values 97.50 ± 0.31: mean and sample standard deviation."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def results_table(
    points: Sequence[Sequence[TrialRow]],
    *,
    varied: Sequence[str],
    metric: str,
    published: Sequence[tuple[str, str, float]],
) -> Table:
    """Return a table with a line per point.

    Args:
        points: the trials of each point.
        varied: the options that differ between trials.
        metric: the metric of the search; gets a column if it is neither of the accuracies.
        published: test accuracy that others published: architecture, task, percent.
    """
    settings = [name for name in varied if name != "seed"]
    columns = {"score": metric, "valid_accuracy": "valid %", "test_accuracy": "test %"}
    if metric in columns:
        del columns["score"]
    theirs = {(arch, task): f"{accuracy:.2f}" for arch, task, accuracy in published}
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in settings:
        table.add_column(name, no_wrap=True)
    titles = [*columns.values(), *(["published"] if theirs else []), "epoch", "time", "trials"]
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for rows in points:
        config = {**TrainConfig().to_dict(), **rows[0].config}
        cells = [setting(config[name]) for name in settings]
        cells += [spread(_values(rows, name)) for name in columns]
        cells += [theirs.get((config["arch"], config["task"]), "-")] if theirs else []
        epochs = sorted({row.epoch for row in rows})
        cells.append("-".join(map(str, epochs[:1] + epochs[1:][-1:])))
        cells.append(duration(statistics.fmean(row.seconds for row in rows)))
        states = Counter(row.status for row in rows)
        cells.append(", ".join(f"{count} {status}" for status, count in states.items()))
        table.add_row(*cells)
    return table
