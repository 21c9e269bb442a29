"""The rows, the table and the file of a search, by hand."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rayff.config.train_config import TrainConfig
from rayff.runs.metrics import Metrics
from rayff.runs.run_directory import RunDirectory
from rayff.tune.results import ranked, results_table, trial_row, write_results
from rayff.tune.search import Search, print_results
from tests.helpers.records import RECORD

TASK = "a/long/path/to/a/folder/of/images/that/makes/the/table/wider/than/eighty"
SEARCH = Search(
    description="",
    metric="valid_accuracy",
    mode="max",
    clones=False,
    varied=["arch", "task", "seed"],
    num_trials=5,
    published=[("resnet", TASK, 99.63)],
    loggers=[],
    cwd="",
)


def row(
    arch: str, seed: int, epoch: int, valid: float | None, test: float | None, status: str
) -> dict[str, Any]:
    return {
        "trial": f"{arch}-{seed}",
        "run_dir": f"runs/{arch}-{seed}",
        "status": status,
        "config": {"arch": arch, "task": TASK, "seed": seed},
        "epoch": epoch,
        "valid_accuracy": valid,
        "test_accuracy": test,
        "seconds": 4.0,
        "error": "the disk is full" if status == "failed" else None,
    }


ROWS = [
    row("vgg", 0, 3, 80.0, 70.0, "finished"),
    row("vgg", 1, 1, 90.0, 71.0, "stopped"),
    row("resnet", 0, 3, 95.0, 94.0, "finished"),
    row("resnet", 1, 3, 97.0, 96.0, "finished"),
    row("tinycnn", 0, 0, None, None, "failed"),
]


@pytest.mark.parametrize(
    ("mode", "names"),
    [
        ("max", [["resnet-1", "resnet-0"], ["vgg-1", "vgg-0"], ["tinycnn-0"]]),
        ("min", [["vgg-0", "vgg-1"], ["resnet-0", "resnet-1"], ["tinycnn-0"]]),
    ],
)
def test_points_are_ranked_by_the_mean_over_their_seeds(mode: Any, names: list[list[str]]) -> None:
    points = ranked(ROWS, dataclasses.replace(SEARCH, mode=mode))
    assert [[row["trial"] for row in point] for point in points] == names


def test_the_results_are_printed_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_results(SEARCH, ROWS), "one has failed"
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "",
        "arch task valid % test % published epoch time trials",
        f"resnet {TASK} 96.00 ± 1.41 95.00 ± 1.41 99.63 3 4.0 s 2",
        f"vgg {TASK} 85.00 ± 7.07 70.50 ± 0.71 - 1-3 4.0 s 1 finished, 1 stopped",
        f"tinycnn {TASK} - - - 0 4.0 s 1 failed",
        "best: resnet-1, runs/resnet-1",
        "tinycnn-0 failed: the disk is full",
    ]
    assert not print_results(SEARCH, ROWS[2:3])
    assert f"resnet {TASK} 95.00 94.00 99.63 3" in " ".join(capsys.readouterr().out.split())


def test_the_table_has_a_column_of_another_metric() -> None:
    table = results_table([], dataclasses.replace(SEARCH, metric="train_loss"))
    assert [column.header for column in table.columns][:3] == ["arch", "task", "train_loss"]


def test_a_row_has_the_newest_epoch_the_time_of_all_and_the_status(tmp_path: Path) -> None:
    found = trial_row(tmp_path, {}, "failed", ValueError("because\nlr"))
    assert (found["status"], found["error"]) == ("failed", "lr")
    assert (found["epoch"], found["valid_accuracy"], found["seconds"]) == (0, None, 0)
    with Metrics(tmp_path, tensorboard=False) as metrics:
        metrics.append(RECORD)
        metrics.append(dataclasses.replace(RECORD, epoch=2, valid_accuracy=70.0))
    found = trial_row(tmp_path, {})
    assert (found["epoch"], found["valid_accuracy"], found["seconds"]) == (2, 70.0, 4.0)
    assert found["status"] == "unfinished"
    for epochs, status in ((2, "finished"), (3, "stopped")):
        RunDirectory(tmp_path).create(TrainConfig(epochs=epochs))
        assert trial_row(tmp_path, {}, "done")["status"] == status


def test_the_file_has_a_row_per_trial(tmp_path: Path) -> None:
    write_results(tmp_path / "results.parquet", ROWS)
    table = pq.read_table(tmp_path / "results.parquet")
    assert table.column_names == (
        "trial run_dir status config epoch valid_accuracy test_accuracy seconds".split()
    )
    rows = table.to_pylist()
    assert json.loads(rows[2]["config"]) == ROWS[2]["config"]
    assert (rows[2]["epoch"], rows[2]["test_accuracy"]) == (3, 94.0)
    assert (rows[4]["epoch"], rows[4]["valid_accuracy"]) == (0, None)
