"""Results of a search: a row per trial, the Parquet file, and the table with the best first."""

from __future__ import annotations

import io
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from rayff.config.train_config import TrainConfig
from rayff.console.frame import duration, mean_deviation, setting
from rayff.runs.files import write_atomically
from rayff.runs.metrics import METRICS_FILE, read_metrics
from rayff.runs.run_directory import RunDirectory
from rayff.tune.space import METRICS

if TYPE_CHECKING:
    from rayff.tune.search import Search

Row = dict[str, Any]
"""A trial: the columns of results.parquet, all METRICS of its newest epoch and the error."""

_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("trial", "run_dir", "status", "config")),
        ("epoch", pa.int64()),
        *((name, pa.float64()) for name in ("valid_accuracy", "test_accuracy", "seconds")),
    ]
)


def trial_row(
    run_dir: Path,
    config: Mapping[str, Any],
    ended: str | None = None,
    error: BaseException | None = None,
) -> Row:
    """Return the row of a trial: its metrics are None, and its epoch 0, before the first epoch.

    The status is finished, failed, stopped (by the scheduler, before the last epoch) or
    unfinished (the search was interrupted).

    Args:
        run_dir: run directory of the trial.
        config: the options that the search gave it.
        ended: "done" or "failed"; None if the search was interrupted before.
        error: why it failed.
    """
    metrics = run_dir / METRICS_FILE
    records = read_metrics(metrics) if metrics.exists() else []
    row = {name: getattr(records[-1], name) if records else None for name in METRICS}
    status = ended or "unfinished"
    if ended == "done":
        last_epoch = RunDirectory(run_dir).read_config().epochs
        status = "finished" if row["epoch"] == last_epoch else "stopped"
    lines = str(getattr(error, "cause", None) or error).strip().splitlines()
    return {
        **row,
        "trial": run_dir.name,
        "run_dir": str(run_dir),
        "status": status,
        "config": config,
        "epoch": row["epoch"] or 0,
        "seconds": sum(record.elapsed_s for record in records),
        "error": lines[-1] if error and lines else None,
    }


def write_results(path: Path, rows: Sequence[Row]) -> None:
    """Write a row per trial; the config is JSON, accuracies are in percent."""
    data = [{**row, "config": json.dumps(row["config"], sort_keys=True)} for row in rows]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(data, schema=_SCHEMA), sink)
    write_atomically(path, sink.getvalue())


def ranked(rows: Sequence[Row], search: Search) -> list[list[Row]]:
    """Return the trials of each point of the space, which differ only in their seed, best first.

    The point with the best mean is first, those without a result are last.
    """
    sign = -1.0 if search.mode == "max" else 1.0
    points: dict[str, list[Row]] = {}
    for row in rows:
        point = {name: value for name, value in row["config"].items() if name != "seed"}
        points.setdefault(json.dumps(point, sort_keys=True), []).append(row)

    def rank(rows: list[Row]) -> tuple[bool, float]:
        values = _values(rows, search.metric)
        return not values, sign * statistics.fmean(values or [0.0])

    return sorted((sorted(p, key=lambda row: rank([row])) for p in points.values()), key=rank)


def _values(rows: Sequence[Row], name: str) -> list[float]:
    """Return a metric of the trials that have an epoch."""
    return [row[name] for row in rows if row[name] is not None]


def results_table(points: Sequence[Sequence[Row]], search: Search) -> Table:
    """Return a table with a line per point."""
    settings = [name for name in search.varied if name != "seed"]
    metrics = {
        search.metric: search.metric,
        "valid_accuracy": "valid %",
        "test_accuracy": "test %",
    }
    theirs = {(arch, task): f"{accuracy:.2f}" for arch, task, accuracy in search.published}
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for name in settings:
        table.add_column(name)
    titles = [*metrics.values(), *(["published"] if theirs else []), "epoch", "time"]
    for title in titles:
        table.add_column(title, justify="right")
    table.add_column("trials")
    for rows in points:
        config = {**TrainConfig().to_dict(), **rows[0]["config"]}
        epochs = sorted({row["epoch"] for row in rows})
        states = Counter(row["status"] for row in rows)
        table.add_row(
            *(setting(config[name]) for name in settings),
            *(mean_deviation(_values(rows, name)) for name in metrics),
            *([theirs.get((config["arch"], config["task"]), "-")] if theirs else []),
            f"{epochs[0]}-{epochs[-1]}" if epochs[1:] else str(epochs[0]),
            duration(statistics.fmean(row["seconds"] for row in rows)),
            str(len(rows))
            if states.keys() == {"finished"}
            else ", ".join(f"{count} {status}" for status, count in sorted(states.items())),
        )
    return table
