"""The timeline that a training writes, and reading it back."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.engine.commands import Evaluate, Report, Snapshot, Train
from rayff.runs import timeline
from rayff.runs.timeline import Span, Timeline, read_timeline
from tests.engine.local_run import train
from tests.helpers.tiny_task import write_tiny_task

BATCH = np.arange(4)


def run_of(tmp_path: Path, epochs: int = 2) -> TrainConfig:
    return TrainConfig(
        arch="tinycnn",
        width=4,
        task=write_tiny_task(tmp_path / "task"),
        epochs=epochs,
        batch_size=32,
        run_dir=str(tmp_path / "run"),
    )


def saved(tmp_path: Path) -> list[Span]:
    return read_timeline(tmp_path / "run" / timeline.FILE)


def work(spans: list[Span]) -> list[tuple[int, str, int, int]]:
    return [(span.epoch, span.kind, span.step, span.stage) for span in spans]


def of_an_epoch(epoch: int, steps: list[int], stages: int) -> list[tuple[int, str, int, int]]:
    commands = [("train", step) for step in steps] + [("valid", 0), ("test", 0)]
    return [(epoch, *command, stage) for command in commands for stage in range(stages)]


def command(step: int, epoch: int = 0) -> Train:
    return Train(epoch=epoch, step=step, lr=0.1, batches=(BATCH,))


def reports(started_s: float, stages: int = 2) -> list[Report]:
    return [Report(started_s=started_s + stage, busy_s=0.5) for stage in range(stages)]


class TestATraining:
    def test_writes_what_each_stage_did_in_each_epoch(self, tmp_path: Path) -> None:
        train(run_of(tmp_path), cuts=(1, 3))
        spans = saved(tmp_path)
        assert work(spans) == [*of_an_epoch(1, [0, 1, 2], 3), *of_an_epoch(2, [3, 4, 5], 3)]
        for stage in range(3):  # one process does one thing after the other
            own = [span for span in spans if span.stage == stage]
            for before, after in zip(own, own[1:], strict=False):
                assert before.busy_s > 0
                assert after.started_s >= before.started_s + before.busy_s - 1e-3

    def test_numbers_a_chunk_by_its_first_batch(self, tmp_path: Path) -> None:
        train(run_of(tmp_path, epochs=1), chunk=2)
        assert work(saved(tmp_path)) == of_an_epoch(1, [0, 2], 1)

    def test_forgets_the_epochs_between_the_first_and_the_newest(self, tmp_path: Path) -> None:
        train(run_of(tmp_path, epochs=3))
        assert work(saved(tmp_path)) == [
            *of_an_epoch(1, [0, 1, 2], 1),
            *of_an_epoch(3, [6, 7, 8], 1),
        ]

    def test_that_goes_on_keeps_the_first_epoch(self, tmp_path: Path) -> None:
        run = run_of(tmp_path, epochs=3)
        train(run, stop_after=6)
        before = saved(tmp_path)
        assert work(before) == of_an_epoch(1, [0, 1, 2], 1)
        train(run, resume=True, cuts=(2,))
        spans = saved(tmp_path)
        assert spans[: len(before)] == before
        assert work(spans) == [*of_an_epoch(1, [0, 1, 2], 1), *of_an_epoch(3, [6, 7, 8], 2)]

    def test_goes_on_where_the_timeline_is_damaged(self, tmp_path: Path) -> None:
        run = run_of(tmp_path)
        train(run, stop_after=6)
        (tmp_path / "run" / timeline.FILE).write_bytes(b"no parquet")
        train(run, resume=True)
        assert work(saved(tmp_path)) == of_an_epoch(2, [4, 5], 1)


class TestATimeline:
    def test_of_a_long_epoch_has_its_beginning_and_its_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timeline, "MAX_ROWS", 4)
        line = Timeline(tmp_path)
        for step in range(100):
            line.add(command(step), reports(step))
        line.write()
        spans = read_timeline(tmp_path / timeline.FILE)
        assert [span.step for span in spans] == [0, 0, 1, 1, 98, 98, 99, 99]
        assert spans[-1] == Span(
            epoch=1, kind="train", step=99, stage=1, started_s=100.0, busy_s=0.5
        )

    def test_counts_the_batches_of_an_evaluation(self, tmp_path: Path) -> None:
        line = Timeline(tmp_path)
        line.add(Evaluate(epoch=0, split="valid", batches=(BATCH, BATCH)), reports(0.0, 1))
        line.add(Evaluate(epoch=0, split="valid", batches=(BATCH,)), reports(1.0, 1))
        line.add(Evaluate(epoch=0, split="test", batches=(BATCH,)), reports(2.0, 1))
        line.write()
        found = work(read_timeline(tmp_path / timeline.FILE))
        assert found == [(1, "valid", 0, 0), (1, "valid", 2, 0), (1, "test", 0, 0)]

    def test_leaves_snapshots_out(self, tmp_path: Path) -> None:
        line = Timeline(tmp_path)
        line.add(Snapshot(epoch=0, batch=0), reports(0.0))
        line.write()
        assert read_timeline(tmp_path / timeline.FILE) == []

    def test_does_not_have_an_epoch_twice_that_is_trained_again(self, tmp_path: Path) -> None:
        line = Timeline(tmp_path)
        line.add(command(0), reports(0.0))
        line.write()
        again = Timeline(tmp_path, epochs_done=0)
        again.add(command(0), reports(9.0))
        again.write()
        assert [s.started_s for s in read_timeline(tmp_path / timeline.FILE)] == [9.0, 10.0]


class TestAFileThatIsNoTimeline:
    @pytest.mark.parametrize(
        "columns",
        [
            {"epoch": [1]},
            {"kind": ["idle"]},
            {"stage": [-1]},
            {"busy_s": [float("nan")]},
            {"started_s": [float("inf")]},
            {"step": pa.array([None], pa.int64())},
        ],
        ids=["missing", "kind", "stage", "nan", "infinite", "null"],
    )
    def test_is_one_sentence(self, tmp_path: Path, columns: dict[str, object]) -> None:
        good = {
            "epoch": [1],
            "kind": ["train"],
            "step": [0],
            "stage": [0],
            "started_s": [1.0],
            "busy_s": [0.1],
        }
        path = tmp_path / timeline.FILE
        pq.write_table(pa.table(good), path)
        assert len(read_timeline(path)) == 1
        table = columns if "epoch" in columns else {**good, **columns}
        pq.write_table(pa.table(table), path)
        with pytest.raises(UserError, match="is no timeline of a run"):
            read_timeline(path)
