"""Reading the metrics of runs and the results of searches."""

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayff.config.errors import UserError
from rayff.report.reader import RESULTS_SCHEMA, read_records, read_search, varied
from rayff.runs.metrics import EpochRecord, Metrics
from tests.helpers.records import RECORD
from tests.report.runs import write_search


def write_metrics(folder: Path, *records: EpochRecord) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    with Metrics(folder) as metrics:
        for record in records:
            metrics.append(record)
    return folder / "metrics.parquet"


class TestMetrics:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"layer_loss": [1.0]},
            {"layer_loss": [], "layer_valid_accuracy": [], "layer_test_accuracy": []},
            {"sip_accuracy": [[1.0, 2.0], [3.0]]},
            {"cuts": []},
            {"elapsed_s": float("inf")},
        ],
        ids=str,
    )
    def test_that_are_inconsistent_are_refused(
        self, tmp_path: Path, wrong: dict[str, Any]
    ) -> None:
        path = write_metrics(tmp_path, RECORD, dataclasses.replace(RECORD, epoch=2, **wrong))
        with pytest.raises(UserError, match="epoch 2"):
            read_records(path)

    def test_without_rows_are_refused(self, tmp_path: Path) -> None:
        path = write_metrics(tmp_path, RECORD)
        pq.write_table(pq.read_table(path).slice(0, 0), path)
        with pytest.raises(UserError, match="has no rows"):
            read_records(path)


class TestSearch:
    def test_has_the_best_trial_first_and_failed_ones_last(self, tmp_path: Path) -> None:
        nothing = {"status": "failed", "epoch": None, "valid_accuracy": None, "seconds": None}
        not_a_number = {"valid_accuracy": float("nan")}
        best = {"valid_accuracy": 70.0, "config": {"lr": 0.1}}
        folder = write_search(
            tmp_path / "search", [{"valid_accuracy": 0.0}, nothing, not_a_number, best]
        )
        trials = read_search(folder)
        assert [trial.trial for trial in trials[:2]] == ["trial-3", "trial-0"]
        assert trials[0].config == {"lr": 0.1}
        assert [trial.valid_accuracy for trial in trials] == [70.0, 0.0, None, None]

    def test_finds_the_metrics_of_its_trials_where_it_was_moved(self, tmp_path: Path) -> None:
        folder = write_search(tmp_path / "search", [{}, {}])
        write_metrics(folder / "trials" / "trial-1", RECORD)
        trials = read_search(folder.rename(tmp_path / "moved"))
        assert [trial.records for trial in trials] == [[], [RECORD]]

    def test_is_read_where_the_metrics_of_a_trial_are_damaged(self, tmp_path: Path) -> None:
        folder = write_search(tmp_path / "search", [{}, {}])
        paths = [write_metrics(folder / "trials" / f"trial-{n}", RECORD) for n in range(2)]
        paths[0].write_bytes(b"PAR1 and no more")
        damaged, whole = read_search(folder)
        assert (whole.records, whole.error) == ([RECORD], "")
        assert damaged.records == []
        assert "trial-0/metrics.parquet is no metrics file" in damaged.error

    @pytest.mark.parametrize(
        "table",
        [
            pa.table({"trial": ["a"]}),
            RESULTS_SCHEMA.empty_table(),
            pa.table({name: ["a"] for name in RESULTS_SCHEMA.names}),
            pa.table({name: pa.nulls(1) for name in RESULTS_SCHEMA.names}),
        ],
        ids=["columns", "rows", "types", "nulls"],
    )
    def test_that_is_damaged_is_refused(self, tmp_path: Path, table: pa.Table) -> None:
        pq.write_table(table, tmp_path / "results.parquet")
        with pytest.raises(UserError, match="is no result of a search"):
            read_search(tmp_path)


def test_settings_vary_where_their_values_differ() -> None:
    configs = [{"lr": 0.1, "arch": "vgg", "cuts": [1]}, {"lr": 0.2, "arch": "vgg"}]
    assert varied(configs) == ["lr", "cuts"]
    assert varied([{"lr": 1}]) == []
