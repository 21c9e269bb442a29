"""The timeline that a training writes, and reading it back."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayff.runs import timeline
from rayff.runs.timeline import Span, Timeline, read_timeline
from tests.helpers.mistakes import refused
from tests.helpers.runs import StopAfter, train_locally
from tests.helpers.tiny_task import tiny_config


def saved(tmp_path: Path) -> list[Span]:
    return read_timeline(tmp_path / "run" / timeline.FILE)


def work(spans: list[Span]) -> list[tuple[int, str, int, int]]:
    return [(span.epoch, span.kind, span.step, span.stage) for span in spans]


def of_an_epoch(epoch: int, steps: list[int], stages: int) -> list[tuple[int, str, int, int]]:
    commands = [("train", step) for step in steps] + [("valid", 0), ("test", 0)]
    return [(epoch, *command, stage) for command in commands for stage in range(stages)]


def add(line: Timeline, kind: str, step: int | None, started_s: float, batches: int = 1) -> None:
    """Add half a second of two stages."""
    spans = [(started_s + stage, 0.5) for stage in range(2)]
    line.add(epoch=1, kind=kind, step=step, num_batches=batches, spans=spans)


class TestATraining:
    def test_writes_the_spans_of_each_stage(self, tiny_task: str, tmp_path: Path) -> None:
        train_locally(tiny_config(tiny_task, tmp_path / "run", cuts=(1, 3)))
        spans = saved(tmp_path)
        assert work(spans) == [*of_an_epoch(1, [0, 1, 2], 3), *of_an_epoch(2, [3, 4, 5], 3)]
        for stage in range(3):  # one process does one thing after the other
            own = [span for span in spans if span.stage == stage]
            for before, after in zip(own, own[1:], strict=False):
                assert before.busy_s > 0
                assert after.started_s >= before.started_s + before.busy_s - 1e-3

    def test_numbers_a_chunk_by_its_first_batch(self, tiny_task: str, tmp_path: Path) -> None:
        train_locally(tiny_config(tiny_task, tmp_path / "run", epochs=1, chunk=2))
        assert work(saved(tmp_path)) == of_an_epoch(1, [0, 2], 1)

    def test_keeps_the_first_and_the_newest_epoch(self, tiny_task: str, tmp_path: Path) -> None:
        config = tiny_config(tiny_task, tmp_path / "run", epochs=3)
        train_locally(config, StopAfter(6))
        before = saved(tmp_path)
        assert work(before) == of_an_epoch(1, [0, 1, 2], 1)
        config = dataclasses.replace(config, cuts=(2,))
        train_locally(config, resume=True)
        spans = saved(tmp_path)
        assert spans[: len(before)] == before
        assert work(spans) == [*of_an_epoch(1, [0, 1, 2], 1), *of_an_epoch(3, [6, 7, 8], 2)]

    def test_goes_on_where_the_timeline_is_damaged(self, tiny_task: str, tmp_path: Path) -> None:
        config = tiny_config(tiny_task, tmp_path / "run")
        train_locally(config, StopAfter(6))
        (tmp_path / "run" / timeline.FILE).write_bytes(b"no parquet")
        train_locally(config, resume=True)
        assert work(saved(tmp_path)) == of_an_epoch(2, [4, 5], 1)


class TestATimeline:
    def test_of_a_long_epoch_has_its_beginning_and_its_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timeline, "MAX_ROWS", 4)
        line = Timeline(tmp_path)
        for step in range(100):
            add(line, "train", step, float(step))
        line.write()
        spans = read_timeline(tmp_path / timeline.FILE)
        assert [span.step for span in spans] == [0, 0, 1, 1, 98, 98, 99, 99]
        assert spans[-1] == Span(
            epoch=1, kind="train", step=99, stage=1, started_s=100.0, busy_s=0.5
        )

    def test_counts_the_batches_of_an_evaluation(self, tmp_path: Path) -> None:
        line = Timeline(tmp_path)
        for kind, batches in (("valid", 2), ("valid", 1), ("test", 1)):
            add(line, kind, None, 0.0, batches)
        line.write()
        found = [row for row in work(read_timeline(tmp_path / timeline.FILE)) if row[3] == 0]
        assert found == [(1, "valid", 0, 0), (1, "valid", 2, 0), (1, "test", 0, 0)]

    def test_does_not_have_an_epoch_twice_that_is_trained_again(self, tmp_path: Path) -> None:
        for started_s in (0.0, 9.0):
            line = Timeline(tmp_path, epochs_done=0)
            add(line, "train", 0, started_s)
            line.write()
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
        with refused("is no timeline of a run"):
            read_timeline(path)
