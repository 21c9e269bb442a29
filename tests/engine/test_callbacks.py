"""Callbacks: their order, and what they can do to a run."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from rayff.config.errors import TrainingDiverged
from rayff.engine.callbacks import Callback, CallbackList
from rayff.engine.commands import Evaluate, Report, Train
from rayff.engine.run import Run
from rayff.partition.plan import Plan
from rayff.runs.checkpoint import Progress
from rayff.runs.metrics import read_metrics
from tests.helpers.runs import (
    KillAfter,
    Killed,
    RecordingCallback,
    StopAfter,
    train_locally,
)
from tests.helpers.tiny_task import tiny_config
from tests.runs.test_metrics import record

FIRST_EPOCH = ["train 0", "train 1", "train 2", "valid", "test", "epoch 1"]
SECOND_EPOCH = ["train 3", "train 4", "train 5", "valid", "test", "epoch 2"]


def without_checkpoints(lines: list[str]) -> list[str]:
    """Return the lines without the checkpoints, which are written in the background."""
    return [line for line in lines if not line.startswith("step-")]


class TestARun:
    def test_calls_them_in_order(self, tiny_task: str, tmp_path: Path) -> None:
        recording = RecordingCallback()
        result = train_locally(tiny_config(tiny_task, tmp_path / "run"), recording)
        events = without_checkpoints(recording.lines)
        assert events == ["start", *FIRST_EPOCH, *SECOND_EPOCH, "end"]
        checkpoints = [line for line in recording.lines if line.startswith("step-")]
        assert checkpoints == ["step-00000003", "step-00000006"]
        assert recording.lines[-2] == "step-00000006", "the last one is waited for"
        assert recording.records == result.metrics

    def test_calls_them_for_what_is_left_after_a_stop(
        self, tiny_task: str, tmp_path: Path
    ) -> None:
        config = tiny_config(tiny_task, tmp_path / "run")
        stopped, resumed = RecordingCallback(), RecordingCallback()
        train_locally(config, stopped, StopAfter(2))
        assert stopped.lines == ["start", "train 0", "train 1", "step-00000002", "end"]
        result = train_locally(config, resumed, resume=True)
        events = without_checkpoints(resumed.lines)
        assert events == ["start", *FIRST_EPOCH[2:], *SECOND_EPOCH, "end"]
        assert resumed.records == result.metrics

    def test_that_diverges_ends_them_with_the_error(self, tiny_task: str, tmp_path: Path) -> None:
        errors: list[BaseException | None] = []

        class Ends(Callback):
            def on_end(self, error: BaseException | None) -> None:
                errors.append(error)

        config = tiny_config(tiny_task, tmp_path / "run", lr=3e38)
        with pytest.raises(TrainingDiverged) as caught:
            train_locally(config, Ends())
        assert errors == [caught.value]

    @pytest.mark.parametrize("chunks", [1, 5])
    def test_ends_all_of_them_where_one_raises(
        self, tiny_task: str, tmp_path: Path, chunks: int
    ) -> None:
        before, behind = RecordingCallback(), RecordingCallback()
        with pytest.raises(Killed):
            train_locally(
                tiny_config(tiny_task, tmp_path / "run"), before, KillAfter(chunks), behind
            )
        assert before.lines[-1] == behind.lines[-1] == "end: Killed"

    def test_does_not_begin_where_one_fails_to_start(self, tiny_task: str, tmp_path: Path) -> None:
        class Refuses(Callback):
            def on_start(self, run: Run, plan: Plan) -> None:
                raise Killed

        before, behind = RecordingCallback(), RecordingCallback()
        with pytest.raises(Killed):
            train_locally(tiny_config(tiny_task, tmp_path / "run"), before, Refuses(), behind)
        assert before.lines == ["start", "end: Killed"]
        assert behind.lines == []
        assert not (tmp_path / "run" / "checkpoints").exists()

    def test_gives_them_the_run_its_plan_and_a_report_of_each_stage(
        self, tiny_task: str, tmp_path: Path
    ) -> None:
        class Sees(Callback):
            plan: Plan
            images = 0

            def on_start(self, run: Run, plan: Plan) -> None:
                assert (run.directory.path / "config.json").exists()
                assert run.resolved.precision == "fp32"
                self.plan = plan

            def on_chunk_end(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
                assert len(reports) == self.plan.num_stages
                self.images += reports[0].images

            def on_epoch_end(self, record: object) -> None:
                assert len(read_metrics(tmp_path / "run" / "metrics.parquet")) > 0

        sees = Sees()
        train_locally(tiny_config(tiny_task, tmp_path / "run", cuts=(1, 3)), sees)
        assert sees.plan.cuts == (1, 3)
        assert sees.images == 2 * (96 + 20 + 30)


class TestAList:
    def test_calls_each_in_order_and_ends_in_reverse(self) -> None:
        shared: list[str] = []
        one = RecordingCallback(lambda line: shared.append(f"one {line}"))
        other = RecordingCallback(lambda line: shared.append(f"other {line}"))
        callbacks = CallbackList([one, other])
        callbacks.on_start(None, None)  # type: ignore[arg-type]
        callbacks.on_chunk_end(Evaluate(epoch=0, split="valid", batches=()), [])
        callbacks.on_epoch_end(record(1))
        callbacks.on_checkpoint(Path("runs/step-00000007"))
        callbacks.on_restart(["layers 0-2"], Progress(epoch=1))
        callbacks.on_warning("the store is nearly full")
        callbacks.on_end(None)
        assert one.lines == other.lines
        assert one.lines == [
            *("start", "valid", "epoch 1", "step-00000007", "restart 1"),
            *("warning: the store is nearly full", "end"),
        ]
        assert shared[:2] == ["one start", "other start"]
        assert shared[-2:] == ["other end", "one end"]

    def test_knows_whether_any_asks_to_stop(self) -> None:
        one, other = Callback(), Callback()
        callbacks = CallbackList([one, other])
        assert not callbacks.any_stop_requested
        other.request_stop()
        assert callbacks.any_stop_requested
        assert not one.stop_requested
        callbacks.on_start(None, None)  # type: ignore[arg-type]
        assert not callbacks.any_stop_requested, "the next run begins anew"
