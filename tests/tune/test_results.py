"""The table and the file of a search, by hand."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from rayff.runs.metrics import EpochRecord, Metrics
from rayff.tune.results import (
    Status,
    TrialRow,
    best,
    ranked,
    results_table,
    setting,
    spread,
    trial_row,
    write_results,
)


def record(epoch: int, valid: float, test: float = 0.0) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        step=epoch,
        lr=0.1,
        train_loss=1.0,
        valid_accuracy=valid,
        test_accuracy=test,
        sip_first=0,
        sip_last=0,
        images_per_s=1.0,
        elapsed_s=2.0,
        layer_loss=[1.0],
        layer_valid_accuracy=[valid],
        layer_test_accuracy=[test],
        stage_busy=[1.0],
        cuts=[],
        sip_accuracy=[[valid]],
    )


def row(
    number: int, config: dict[str, Any], last: EpochRecord | None, status: Status = "finished"
) -> TrialRow:
    return TrialRow(
        trial=f"trial-{number}",
        run_dir=f"runs/{number}",
        status=status,
        config=config,
        last=last,
        seconds=4.0,
    )


ROWS = [
    row(0, {"arch": "vgg", "task": "mnist", "seed": 0}, record(3, 80, 70)),
    row(1, {"arch": "vgg", "task": "mnist", "seed": 1}, record(1, 90, 71), "stopped"),
    row(2, {"arch": "resnet", "task": "mnist", "seed": 0}, record(3, 95, 94)),
    row(3, {"arch": "resnet", "task": "mnist", "seed": 1}, record(3, 97, 96)),
    row(4, {"arch": "tinycnn", "task": "mnist", "seed": 0}, None, "failed"),
]
VARIED = ["arch", "seed"]


class TestTheRanking:
    def test_puts_the_best_mean_over_the_seeds_first_and_nothing_last(self) -> None:
        groups = ranked(ROWS, VARIED, "valid_accuracy", "max")
        assert [group.settings["arch"] for group in groups] == ["resnet", "vgg", "tinycnn"]
        assert groups[0].mean("valid_accuracy") == 96

    def test_may_look_for_the_least(self) -> None:
        groups = ranked(ROWS, VARIED, "valid_accuracy", "min")
        assert [group.settings["arch"] for group in groups] == ["vgg", "resnet", "tinycnn"]

    def test_names_the_best_trial_of_the_best_point(self) -> None:
        groups = ranked(ROWS, VARIED, "valid_accuracy", "max")
        winner = best(groups, "valid_accuracy", "max")
        assert winner is not None
        assert winner.trial == "trial-3"
        assert (
            best(ranked(ROWS[4:], VARIED, "valid_accuracy", "max"), "valid_accuracy", "max")
            is None
        )
        assert best([], "valid_accuracy", "max") is None


class TestTheTable:
    def test_has_spread_status_and_the_published_figure(self) -> None:
        table = results_table(
            ranked(ROWS, VARIED, "valid_accuracy", "max"),
            metric="valid_accuracy",
            published={("resnet", "mnist"): 99.63},
        )
        console = Console(width=120)
        with console.capture() as capture:
            console.print(table)
        lines = [" ".join(line.split()) for line in capture.get().splitlines()]
        assert lines == [
            "arch valid % test % published test % epoch seconds trials",
            "resnet 96.00 ± 1.41 95.00 ± 1.41 99.63 3 4.0 s 2 finished",
            "vgg 85.00 ± 7.07 70.50 ± 0.71 - 1-3 4.0 s 1 finished, 1 stopped",
            "tinycnn - - - 0 4.0 s 1 failed",
        ]

    def test_is_empty_without_trials(self) -> None:
        assert results_table([], metric="train_loss", published={}).row_count == 0

    @pytest.mark.parametrize(
        ("value", "shown"), [(0.0012345678, "0.001235"), ((1, 3), "1,3"), ((), "none"), (7, "7")]
    )
    def test_shows_settings_in_few_characters(self, value: object, shown: str) -> None:
        assert setting(value) == shown

    def test_has_no_spread_for_a_single_value(self) -> None:
        assert [spread([]), spread([1.5]), spread([1.0, 3.0])] == ["-", "1.50", "2.00 ± 1.41"]


class TestTheFile:
    def test_has_a_row_a_trial(self, tmp_path: Path) -> None:
        write_results(tmp_path / "results.parquet", ROWS)
        table = pq.read_table(tmp_path / "results.parquet")
        assert table.column_names == (
            "trial run_dir status config epoch valid_accuracy test_accuracy seconds".split()
        )
        rows = table.to_pylist()
        assert json.loads(rows[2]["config"]) == ROWS[2].config
        assert (rows[2]["epoch"], rows[2]["test_accuracy"]) == (3, 94.0)
        assert (rows[4]["epoch"], rows[4]["valid_accuracy"]) == (0, None)

    def test_takes_the_epochs_from_the_run_directory(self, tmp_path: Path) -> None:
        assert trial_row("trial-0", tmp_path, {}).last is None
        with Metrics(tmp_path) as metrics:
            metrics.append(record(1, 10))
            metrics.append(record(2, 20))
        found = trial_row("trial-0", tmp_path, {"lr": 1})
        assert found.last == record(2, 20)
        assert (found.seconds, found.status) == (4.0, "unfinished")
