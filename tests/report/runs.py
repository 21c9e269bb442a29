"""Runs and searches for the tests of reports, and the text of a page."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayff.config.train_config import TrainConfig
from tests.helpers.runs import train_locally
from tests.helpers.tiny_task import write_tiny_task


def write_run(folder: Path, **options: Any) -> Path:
    """Train four layers as two stages in this process; the task's data is in `task` next to it."""
    task = folder.parent / "task"
    if not task.exists():
        write_tiny_task(task)
    options = {"width": 8, "epochs": 2, "batch_size": 32, "rule": "plain", **options}
    train_locally(TrainConfig(task=str(task), run_dir=str(folder), cuts=(2,), **options))
    return folder


def write_search(folder: Path, trials: list[dict[str, Any]]) -> Path:
    """Write results.parquet; the default is a finished trial."""
    rows = []
    for number, trial in enumerate(trials):
        row = {
            "trial": f"trial-{number}",
            "run_dir": str(folder / "trials" / f"trial-{number}"),
            "status": "finished",
            "epoch": 2,
            "valid_accuracy": 50.0,
            "test_accuracy": 49.0,
            "seconds": 3.0,
            **trial,
        }
        rows.append({**row, "config": json.dumps(trial.get("config", {}))})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "results.parquet")
    return folder


def page_text(page: str) -> str:
    """Return the text of a page: a line per heading, paragraph and table row."""
    text = re.sub(r"\s+", " ", page.partition("<body>")[2])
    text = re.sub(r"<h(\d)>", lambda match: "#" * int(match[1]) + " ", text)
    text = re.sub(r"</(h\d|p|tr|dd|figcaption|pre)>", "\n", text)
    text = re.sub(r"</(td|th|dt)>", " | ", text)
    text = html.unescape(re.sub(r"<[^>]*>", "", text))
    return "\n".join(line.strip(" |") for line in text.splitlines() if line.strip())
