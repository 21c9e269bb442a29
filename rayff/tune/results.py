"""What the trials of a search came to: rows, a Parquet file, and a table with the best first."""

from __future__ import annotations

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
from rayff.console.frame import duration
from rayff.runs.files import write_atomically
from rayff.runs.metrics import METRICS_FILE, EpochRecord, read_metrics

Status = Literal["finished", "stopped", "failed", "unfinished"]
"""Stopped: by the scheduler, before its last epoch. Unfinished: the search was interrupted."""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial."""

    trial: str
    run_dir: str
    status: Status
    config: Mapping[str, Any]
    """The options that the search gave it."""
    last: EpochRecord | None
    """Its newest epoch; None before the first."""
    seconds: float
    """Of its epochs together."""
    error: str | None = None
    """The sentence of a failed trial."""


def trial_row(trial: str, run_dir: Path, config: Mapping[str, Any]) -> TrialRow:
    """Return the row of a trial that is not finished, with what its run directory says."""
    metrics = run_dir / METRICS_FILE
    records = read_metrics(metrics) if metrics.exists() else []
    return TrialRow(
        trial=trial,
        run_dir=str(run_dir),
        status="unfinished",
        config=config,
        last=records[-1] if records else None,
        seconds=sum(record.elapsed_s for record in records),
    )


_SCHEMA = pa.schema(
    [
        ("trial", pa.string()),
        ("run_dir", pa.string()),
        ("status", pa.string()),
        ("config", pa.string()),
        ("epoch", pa.int64()),
        ("valid_accuracy", pa.float64()),
        ("test_accuracy", pa.float64()),
        ("seconds", pa.float64()),
    ]
)


def write_results(path: Path, rows: Sequence[TrialRow]) -> None:
    """Write one row a trial; the config is JSON, accuracies are in percent."""
    data = [
        {
            "trial": row.trial,
            "run_dir": row.run_dir,
            "status": row.status,
            "config": json.dumps(row.config, sort_keys=True),
            "epoch": row.last.epoch if row.last else 0,
            "valid_accuracy": row.last.valid_accuracy if row.last else None,
            "test_accuracy": row.last.test_accuracy if row.last else None,
            "seconds": row.seconds,
        }
        for row in rows
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(data, schema=_SCHEMA), sink)
    write_atomically(path, sink.getvalue())


@dataclass(frozen=True, kw_only=True)
class Group:
    """The trials of one point of the space, which differ in their seed alone."""

    settings: Mapping[str, Any]
    """The options that vary in the search, without the seed."""
    rows: Sequence[TrialRow]

    def values(self, metric: str) -> list[float]:
        """Return what the trials that have an epoch reached."""
        return [float(getattr(row.last, metric)) for row in self.rows if row.last is not None]

    def mean(self, metric: str) -> float | None:
        """Return the mean over the seeds, None where there is nothing yet."""
        values = self.values(metric)
        return statistics.fmean(values) if values else None


def ranked(rows: Sequence[TrialRow], varied: Sequence[str], metric: str, mode: str) -> list[Group]:
    """Return the points of the space, the best first and those without a result last."""
    points: dict[str, list[TrialRow]] = {}
    for row in rows:
        point = {name: value for name, value in row.config.items() if name != "seed"}
        points.setdefault(json.dumps(point, sort_keys=True), []).append(row)
    groups = [
        Group(
            settings={
                name: point[0].config[name]
                for name in varied
                if name != "seed" and name in point[0].config
            },
            rows=point,
        )
        for point in points.values()
    ]
    sign = -1 if mode == "max" else 1

    def key(group: Group) -> tuple[bool, float]:
        mean = group.mean(metric)
        return mean is None, sign * (mean or 0.0)

    return sorted(groups, key=key)


def setting(value: Any) -> str:
    """Return a value of an option as a table shows it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return ",".join(map(str, value)) or "none" if isinstance(value, (list, tuple)) else str(value)


def spread(values: Sequence[float]) -> str:
    """Return 97.50, or 97.50 ± 0.31 (sample deviation) of several."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def results_table(
    groups: Sequence[Group],
    *,
    metric: str,
    published: Mapping[tuple[str, str], float],
    title: str = "",
) -> Table:
    """Return a table with a line a point.

    Args:
        groups: ranked.
        metric: what they were ranked by; shown where it is neither of the accuracies.
        published: test accuracy of others, by architecture and task.
        title: above it.
    """
    table = Table(title=title or None, box=None, padding=(0, 1), pad_edge=False)
    names = list(groups[0].settings) if groups else []
    for name in names:
        table.add_column(name, no_wrap=True)
    shown = [m for m in (metric, "valid_accuracy", "test_accuracy") if m]
    shown = list(dict.fromkeys(shown))
    headers = {"valid_accuracy": "valid %", "test_accuracy": "test %"}
    for name in shown:
        table.add_column(headers.get(name, name), justify="right", no_wrap=True)
    if published:
        table.add_column("published test %", justify="right", no_wrap=True)
    for name in ("epoch", "seconds", "trials"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        cells = [setting(value) for value in group.settings.values()]
        cells += [spread(group.values(name)) for name in shown]
        if published:
            first = {**TrainConfig().to_dict(), **group.rows[0].config}
            theirs = published.get((first["arch"], first["task"]))
            cells.append("-" if theirs is None else f"{theirs:.2f}")
        cells.append(spread_of_epochs(group))
        cells.append(duration(statistics.fmean(row.seconds for row in group.rows)))
        states = Counter(row.status for row in group.rows)
        cells.append(", ".join(f"{count} {status}" for status, count in states.items()))
        table.add_row(*cells)
    return table


def spread_of_epochs(group: Group) -> str:
    """Return how far the trials of a point came: 4, or 1-4."""
    epochs = [row.last.epoch if row.last else 0 for row in group.rows]
    low, high = min(epochs), max(epochs)
    return str(low) if low == high else f"{low}-{high}"


def best(groups: Sequence[Group], metric: str, mode: str) -> TrialRow | None:
    """Return the best trial of the best point."""
    rows = [row for row in groups[0].rows if row.last is not None] if groups else []
    choose = max if mode == "max" else min
    return choose(rows, key=lambda row: float(getattr(row.last, metric))) if rows else None


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial's options as JSON can hold them."""
    return {
        name: value.item() if hasattr(value, "item") else value for name, value in config.items()
    }
