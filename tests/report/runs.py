"""A small run, and the folders of searches, for the tests of reports."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayff.config.train_config import TrainConfig
from tests.engine.local_run import train
from tests.helpers.tiny_task import write_tiny_task


def write_run(folder: Path, **options: Any) -> Path:
    """Train four layers as two stages in this process; return the run directory.

    The task's data is in `task` beside it.
    """
    task = folder.parent / "task"
    if not task.exists():
        write_tiny_task(task)
    options = {"arch": "tinycnn", "width": 8, "epochs": 2, "batch_size": 32, **options}
    run = TrainConfig(task=str(task), run_dir=str(folder), rule="plain", **options)
    train(run, cuts=(2,))
    return folder


def write_search(folder: Path, trials: list[dict[str, Any]]) -> Path:
    """Write results.parquet; what a trial does not say is that of a trial that ended well."""
    rows = []
    for number, trial in enumerate(trials):
        row = {
            "trial": f"trial-{number}",
            "run_dir": str(folder / f"trial-{number}"),
            "status": "TERMINATED",
            "config": {},
            "epoch": 2,
            "valid_accuracy": 50.0,
            "test_accuracy": 49.0,
            "seconds": 3.0,
            **trial,
        }
        rows.append({**row, "config": json.dumps(row["config"])})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "results.parquet")
    return folder
