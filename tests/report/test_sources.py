"""Reading what a report shows."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayff.config.errors import UserError
from rayff.report.search_report import search_page
from rayff.report.sources import read_records, read_search, varied
from rayff.runs.metrics import EpochRecord, Metrics
from tests.report.runs import write_search

RECORD = EpochRecord(
    epoch=1,
    step=3,
    lr=0.1,
    train_loss=1.0,
    valid_accuracy=60.0,
    test_accuracy=50.0,
    sip_first=0,
    sip_last=1,
    images_per_s=100.0,
    elapsed_s=2.0,
    layer_loss=[1.5, 0.5],
    layer_valid_accuracy=[40.0, 55.0],
    layer_test_accuracy=[35.0, 50.0],
    stage_busy=[0.5, 0.9],
    cuts=[1],
    sip_accuracy=[[40.0, 60.0], [0.0, 55.0]],
)


def metrics(folder: Path, *records: EpochRecord) -> Path:
    folder.mkdir(exist_ok=True)
    with Metrics(folder) as written:
        for record in records:
            written.append(record)
    return folder / "metrics.parquet"


class TestMetrics:
    def test_are_those_that_were_written(self, tmp_path: Path) -> None:
        second = dataclasses.replace(RECORD, epoch=2, cuts=[], stage_busy=[1.0])
        assert read_records(metrics(tmp_path, RECORD, second)) == [RECORD, second]

    @pytest.mark.parametrize(
        "wrong",
        [
            {"layer_loss": [1.0]},
            {"layer_loss": [], "layer_valid_accuracy": [], "layer_test_accuracy": []},
            {"layer_test_accuracy": [1.0, float("nan")]},
            {"sip_accuracy": [[1.0, 2.0]]},
            {"sip_accuracy": [[1.0, 2.0], [3.0]]},
            {"sip_last": 2},
            {"sip_first": 1, "sip_last": 0},
            {"cuts": []},
            {"elapsed_s": float("inf")},
        ],
        ids=str,
    )
    def test_whose_numbers_do_not_go_together_are_damaged(
        self, tmp_path: Path, wrong: dict[str, Any]
    ) -> None:
        path = metrics(tmp_path, RECORD, dataclasses.replace(RECORD, epoch=2, **wrong))
        with pytest.raises(UserError, match="epoch 2"):
            read_records(path)

    def test_without_rows_are_said_to_be_empty(self, tmp_path: Path) -> None:
        path = metrics(tmp_path, RECORD)
        pq.write_table(pq.read_table(path).slice(0, 0), path)
        with pytest.raises(UserError, match="has no rows"):
            read_records(path)


class TestASearch:
    def test_has_the_best_trial_first_and_the_failed_ones_last(self, tmp_path: Path) -> None:
        nothing = {"status": "ERROR", "epoch": None, "valid_accuracy": None, "seconds": None}
        folder = write_search(
            tmp_path / "search",
            [{"valid_accuracy": 60.0}, nothing, {"valid_accuracy": 70.0, "config": {"lr": 0.1}}],
        )
        trials = read_search(folder)
        assert [trial.name for trial in trials] == ["trial-2", "trial-0", "trial-1"]
        assert trials[0].config == {"lr": 0.1}
        assert [trials[2].epoch, trials[2].valid_accuracy, trials[2].seconds] == [None] * 3

    def test_finds_the_epochs_of_its_trials_also_where_it_was_moved(self, tmp_path: Path) -> None:
        folder = write_search(tmp_path / "search", [{}, {}])
        metrics(folder / "trial-1", RECORD)
        trials = read_search(folder.rename(tmp_path / "moved"))
        assert [trial.records for trial in trials] == [[], [RECORD]]

    def test_whose_trial_has_damaged_metrics_still_has_the_others(self, tmp_path: Path) -> None:
        folder = write_search(tmp_path / "search", [{}, {}])
        for name in ("trial-0", "trial-1"):
            metrics(folder / name, RECORD)
        (folder / "trial-0" / "metrics.parquet").write_bytes(b"PAR1 and no more")
        trials = {trial.name: trial for trial in read_search(folder)}
        assert trials["trial-1"].records == [RECORD]
        assert trials["trial-0"].records == []
        assert "trial-0/metrics.parquet is no metrics file" in trials["trial-0"].damage
        page = search_page(folder, list(trials.values()))
        assert "No curve of trial-0" in page.html()

    @pytest.mark.parametrize(
        "table",
        [
            pa.table({"trial": ["a"]}),
            pa.table({"trial": pa.array([], pa.string())}),
            pa.table({name: ["a"] for name in ("trial", "run_dir", "status", "config", "epoch",
                      "valid_accuracy", "test_accuracy")}),
        ],
        ids=["columns", "rows", "types"],
    )  # fmt: skip
    def test_that_is_none_is_one_sentence(self, tmp_path: Path, table: pa.Table) -> None:
        pq.write_table(table, tmp_path / "results.parquet")
        with pytest.raises(UserError, match="is no result of a search"):
            read_search(tmp_path)


def test_settings_vary_that_are_not_the_same_everywhere() -> None:
    configs = [{"lr": 0.1, "arch": "vgg", "cuts": [1]}, {"lr": 0.2, "arch": "vgg"}]
    assert varied(configs) == ["lr", "cuts"]
    assert varied([json.loads('{"lr": 1}')]) == []
