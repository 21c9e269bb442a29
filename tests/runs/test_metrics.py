"""The records of a run: the content of their files, and their continuation on resumption."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rayff.runs import files
from rayff.runs.metrics import EpochRecord, Metrics, read_metrics, scalars
from tests.helpers.mistakes import refused
from tests.runs.failing_disk import INTERRUPTIONS, interrupted

PROMISED = [
    *("epoch", "train_loss", "valid_accuracy", "test_accuracy", "sip_first", "sip_last"),
    *("images_per_s", "last_valid_accuracy", "last_test_accuracy", "fusion_test_accuracy"),
]
BY_LAYER = ["layer_loss", "layer_valid_accuracy", "layer_test_accuracy"]
BY_STAGE = ["stage_busy"]


def record(epoch: int, *, window: tuple[int, int] = (0, 2), loss: float = 0.1) -> EpochRecord:
    """Return a record of three layers in two stages, with numbers that no format may round."""
    third = 100 / 3
    return EpochRecord(
        epoch=epoch,
        step=7 * epoch,
        lr=0.1 / epoch,
        train_loss=loss + epoch / 3,
        valid_accuracy=third + epoch,
        test_accuracy=third - epoch,
        last_valid_accuracy=2 * third,
        last_test_accuracy=100.0,
        sip_first=window[0],
        sip_last=window[1],
        images_per_s=1e6 / 7,
        elapsed_s=1e-9,
        layer_loss=[0.1, 0.2, 1 / 3],
        layer_valid_accuracy=[third, 50.0, 2 * third],
        layer_test_accuracy=[0.0, third, 100.0],
        stage_busy=[0.75, 1 / 7],
        cuts=[1],
        sip_accuracy=[[third, 40.0, 41.0], [0.0, 50.0, 51.0], [0.0, 0.0, 2 * third]],
        fusion_test_accuracy=third + epoch,
    )


def write(directory: Path, *epochs: int) -> None:
    with Metrics(directory) as metrics:
        for epoch in epochs:
            metrics.append(record(epoch))


def rows_of_csv(directory: Path) -> list[dict[str, Any]]:
    """Return the rows with every cell read as JSON, which numbers and lists are."""
    with (directory / "metrics.csv").open(newline="") as file:
        return [{k: json.loads(v) for k, v in row.items()} for row in csv.DictReader(file)]


class TestTheFiles:
    def test_parquet_holds_every_value_as_it_was(self, tmp_path: Path) -> None:
        write(tmp_path, 1, 2, 3)
        rows = pq.read_table(tmp_path / "metrics.parquet").to_pylist()
        assert rows == [dataclasses.asdict(record(epoch)) for epoch in (1, 2, 3)]
        assert read_metrics(tmp_path / "metrics.parquet") == [record(1), record(2), record(3)]

    def test_csv_holds_the_same_but_the_matrix(self, tmp_path: Path) -> None:
        write(tmp_path, 1, 2)
        expected = [dataclasses.asdict(record(epoch)) for epoch in (1, 2)]
        for row in expected:
            del row["sip_accuracy"]
        assert rows_of_csv(tmp_path) == expected
        head = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
        assert head == list(expected[0])

    def test_the_columns_that_are_promised(self, tmp_path: Path) -> None:
        write(tmp_path, 1)
        schema = pq.read_schema(tmp_path / "metrics.parquet")
        assert set(PROMISED + BY_LAYER + BY_STAGE + ["sip_accuracy"]) <= set(schema.names)
        assert set(PROMISED + BY_LAYER + BY_STAGE) <= set(rows_of_csv(tmp_path)[0])
        for name in ("epoch", "step", "sip_first", "sip_last"):
            assert schema.field(name).type == pa.int64()
        for name in PROMISED[1:4]:
            assert schema.field(name).type == pa.float64()

    def test_are_there_after_each_epoch(self, tmp_path: Path) -> None:
        with Metrics(tmp_path) as metrics:
            assert not (tmp_path / "metrics.parquet").exists()
            for epoch in (1, 2, 3):
                metrics.append(record(epoch))
                assert len(read_metrics(tmp_path / "metrics.parquet")) == epoch
                assert len(rows_of_csv(tmp_path)) == epoch

    def test_without_a_fusion_its_cell_is_empty(self, tmp_path: Path) -> None:
        row = dataclasses.replace(record(1), fusion_test_accuracy=None)
        with Metrics(tmp_path) as metrics:
            metrics.append(row)
        assert read_metrics(tmp_path / "metrics.parquet") == [row]
        with (tmp_path / "metrics.csv").open(newline="") as file:
            assert [cells["fusion_test_accuracy"] for cells in csv.DictReader(file)] == [""]
        assert "fusion_test_accuracy" not in scalars(row)
        assert row.readouts == {"window": row.test_accuracy, "last": 100.0}
        assert record(1).readouts == {**row.readouts, "fusion": 100 / 3 + 1}

    def test_of_before_the_readouts_had_names_are_read(self, tmp_path: Path) -> None:
        write(tmp_path, 1)
        path = tmp_path / "metrics.parquet"
        columns = ["last_valid_accuracy", "last_test_accuracy", "fusion_test_accuracy"]
        columns += ["data_wait"]
        pq.write_table(pq.read_table(path).drop_columns(columns), path)
        assert read_metrics(path) == [dataclasses.replace(record(1), fusion_test_accuracy=None)]

    def test_come_without_tensorboard_events_where_it_is_off(self, tmp_path: Path) -> None:
        with Metrics(tmp_path, tensorboard=False) as metrics:
            metrics.append(record(1))
        assert {path.name for path in tmp_path.iterdir()} == {"metrics.parquet", "metrics.csv"}

    @pytest.mark.parametrize("number", [0, 1])
    @pytest.mark.parametrize("error", INTERRUPTIONS, ids=lambda error: type(error).__name__)
    def test_cut_short_they_are_the_old_ones(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException
    ) -> None:
        with Metrics(tmp_path) as metrics:
            metrics.append(record(1))
            with monkeypatch.context() as patch:
                patch.setattr(files, "write_durably", interrupted(number, error))
                with pytest.raises(type(error)):
                    metrics.append(record(2))
        assert len(read_metrics(tmp_path / "metrics.parquet")) == 1 + number
        assert len(rows_of_csv(tmp_path)) == 1
        assert not list(tmp_path.glob(".*"))


class TestTensorBoard:
    def test_events_are_on_disk_after_each_epoch(self, tmp_path: Path) -> None:
        with Metrics(tmp_path) as metrics:
            metrics.append(record(1))
            metrics.append(record(2))
            events = EventAccumulator(str(tmp_path / "tensorboard"))
            events.Reload()  # while the run goes on
        tags = set(events.Tags()["scalars"])
        by_layer = {f"{name}/{layer}" for name in BY_LAYER for layer in range(3)}
        others = {"lr", "elapsed_s", "data_wait", "stage_busy/0", "stage_busy/1"}
        assert tags == (set(PROMISED) - {"epoch"}) | by_layer | others
        for tag, values in {
            "train_loss": [0.1 + 1 / 3, 0.1 + 2 / 3],
            "valid_accuracy": [100 / 3 + 1, 100 / 3 + 2],
            "layer_valid_accuracy/2": [200 / 3, 200 / 3],
            "stage_busy/1": [1 / 7, 1 / 7],
        }.items():
            scalars = events.Scalars(tag)
            assert [scalar.step for scalar in scalars] == [1, 2]
            assert [scalar.value for scalar in scalars] == pytest.approx(values)


class TestResumption:
    @pytest.mark.parametrize("complete", [0, 1, 2, 3])
    def test_keeps_complete_epochs_and_drops_later_ones(
        self, tmp_path: Path, complete: int
    ) -> None:
        write(tmp_path, 1, 2, 3)
        again = record(complete + 1, loss=9.0)
        with Metrics(tmp_path) as metrics:
            metrics.load(complete)
            assert metrics.records == [record(epoch) for epoch in range(1, complete + 1)]
            metrics.append(again)
        expected = [*(record(epoch) for epoch in range(1, complete + 1)), again]
        assert read_metrics(tmp_path / "metrics.parquet") == expected
        assert [row["train_loss"] for row in rows_of_csv(tmp_path)] == [
            row.train_loss for row in expected
        ]

    def test_the_window_is_that_of_the_newest_epoch(self, tmp_path: Path) -> None:
        with Metrics(tmp_path) as metrics:
            assert metrics.window(default=(0, 9)) == (0, 9)
            metrics.append(record(1, window=(1, 2)))
            assert metrics.window(default=(0, 9)) == (1, 2)
            metrics.append(record(2, window=(0, 1)))
            assert metrics.window(default=(0, 9)) == (0, 1)
        with Metrics(tmp_path) as metrics:
            metrics.load(1)
            assert metrics.window(default=(0, 9)) == (1, 2)


class TestAFileThatIsNoMetrics:
    """Damage of every other kind is tested by tests/fuzz/test_metrics.py."""

    def refused(self, directory: Path, match: str) -> None:
        path = directory / "metrics.parquet"
        sentence = f"{path} is no metrics file of a run: .*{match}.*; move it away to go on"
        with refused(sentence):
            read_metrics(path)
        with Metrics(directory) as metrics, refused(sentence):
            metrics.load(1)

    def test_not_parquet(self, tmp_path: Path) -> None:
        (tmp_path / "metrics.parquet").write_text("epoch,loss\n1,2\n")
        self.refused(tmp_path, "Parquet")

    def test_truncated(self, tmp_path: Path) -> None:
        write(tmp_path, 1, 2)
        path = tmp_path / "metrics.parquet"
        path.write_bytes(path.read_bytes()[:-1])
        self.refused(tmp_path, "")

    def test_not_there_or_a_folder(self, tmp_path: Path) -> None:
        with refused("is no metrics file"):
            read_metrics(tmp_path / "none.parquet")
        (tmp_path / "metrics.parquet").mkdir()
        self.refused(tmp_path, "")

    @pytest.mark.parametrize(
        "columns", [{"image": [b"1"], "label": [3]}, {"epoch": [1]}, {}], ids=str
    )
    def test_other_columns(self, tmp_path: Path, columns: dict[str, list[Any]]) -> None:
        pq.write_table(pa.table(columns), tmp_path / "metrics.parquet")
        self.refused(tmp_path, "its columns are not those of epoch, step, ")

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"layer_loss": [0.1, None, 0.2]}, "a number of epoch 2 is missing or not finite"),
            ({"sip_accuracy": [[1.0, float("nan")]]}, "a number of epoch 2 is missing or not"),
            ({"sip_last": 3}, "epoch 2 has 3 layers and the window 0-3"),
            ({"sip_first": -1}, "epoch 2 has 3 layers and the window -1-2"),
            ({"epoch": 1}, "epoch 1 comes after epoch 1"),
        ],
    )
    def test_values_that_no_run_records(
        self, tmp_path: Path, changes: dict[str, Any], match: str
    ) -> None:
        write(tmp_path, 1)
        schema = pq.read_schema(tmp_path / "metrics.parquet")
        rows = [dataclasses.asdict(record(1)), {**dataclasses.asdict(record(2)), **changes}]
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), tmp_path / "metrics.parquet")
        self.refused(tmp_path, match)
