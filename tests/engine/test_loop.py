"""The loop: its records against hand-made reports, and that stopping changes nothing."""

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from rayff.config.errors import RunError, TrainingDiverged
from rayff.config.train_config import TrainConfig
from rayff.engine import loop as loop_module
from rayff.engine.commands import Command, Evaluate, Report, Snapshot, Train
from rayff.engine.pipeline import Result
from rayff.engine.preparation import Prepared, prepare
from rayff.runs import checkpoint as checkpoint_module
from rayff.runs import files
from rayff.runs.files import write_durably
from rayff.runs.metrics import read_metrics
from rayff.runs.run_directory import RunDirectory
from tests.engine.local_run import Diary, layer_files, local_pipeline, timeless, train
from tests.helpers.tiny_task import write_tiny_task

# 96 training images in batches of 40 are 3 batches; with the 20 images for validation and the 30
# for testing that makes 5 results an epoch where a chunk is one batch.
BATCHES = 3


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_task(tmp_path_factory.mktemp("data") / "tiny")


def make_run(task: str, run_dir: Path, **changes: Any) -> TrainConfig:
    options = {"width": 4, "epochs": 2, "batch_size": 40, "lr": 0.01, "seed": 3, **changes}
    return TrainConfig(task=task, run_dir=str(run_dir), **options)


class Clock:
    """Time that only a fake pipeline moves."""

    def __init__(self) -> None:
        self.now_s = 50.0

    def perf_counter(self) -> float:
        return self.now_s


class FakePipeline:
    """Two stages of two layers whose reports are made by hand.

    The losses of a batch's layers are 1, 2, 3 and 4 on the average in the first batch of an
    epoch and twice as much in the others. A batch takes 2 s, an evaluation 1 s, a snapshot 10 s.
    """

    VALID = ((10, 12, 16, 14), (0, 11, 16, 13), (0, 0, 9, 8), (0, 0, 0, 16))
    """Of 20. The best window has 16: it ends with layer 2 and begins with layer 0."""
    TEST = ((3, 6, 12, 30), (0, 9, 15, 21), (0, 0, 18, 24), (0, 0, 0, 27))
    """Of 30."""

    def __init__(self, clock: Clock, prepared: Prepared) -> None:
        self.clock = clock
        self.network = prepared.architecture

    def stream(self, commands: Iterable[Command]) -> Iterator[Result]:
        for command in commands:
            if isinstance(command, Train):
                yield command, self.train(command)
            elif isinstance(command, Evaluate):
                yield command, self.evaluate(command)
            else:
                yield command, self.snapshot()

    def train(self, command: Train) -> list[Report]:
        self.clock.now_s += 2
        images = len(command.batches[0])
        scale = images * (1 if command.step % BATCHES == 0 else 2)
        return [
            self.report(2.0, busy_s=1.0, images=images, loss_sums=(1.0 * scale, 2.0 * scale)),
            self.report(0.5, busy_s=0.5, images=images, loss_sums=(3.0 * scale, 4.0 * scale)),
        ]

    def evaluate(self, command: Evaluate) -> list[Report]:
        self.clock.now_s += 1
        images = len(command.batches[0])
        hits = np.array(self.VALID if command.split == "valid" else self.TEST)
        return [
            self.report(1.0, busy_s=0.5, images=images),
            self.report(0.25, busy_s=0.25, images=images, hits=hits),
        ]

    def report(self, ago_s: float, **facts: Any) -> Report:
        return Report(started_s=self.clock.now_s - ago_s, **facts)

    def snapshot(self) -> list[Report]:
        self.clock.now_s += 10
        states = {
            layer.index: np.frombuffer(save({"weight": torch.zeros(layer.weight_shape)}), np.uint8)
            for layer in self.network.layers
        }
        first, last = ({i: states[i] for i in part} for part in ((0, 1), (2, 3)))
        return [
            self.report(0.0, busy_s=0, states=first),
            self.report(0.0, busy_s=0, states=last),
        ]


class TestRecordsByHand:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        clock = Clock()
        monkeypatch.setattr(loop_module, "time", clock)
        return clock

    def test_what_is_recorded(self, task: str, tmp_path: Path, clock: Clock) -> None:
        run = make_run(task, tmp_path / "run", lr=0.08, lr_min=0.008)
        records, _ = train(run, cuts=(2,), pipeline=lambda prepared: FakePipeline(clock, prepared))
        assert [record.epoch for record in records] == [1, 2]
        assert [record.step for record in records] == [3, 6]
        assert [record.lr for record in records] == pytest.approx([0.08, 0.044])
        # 40 images of loss 1 and 56 of 2 give 152/96 for layer 0, and so on
        mean = 152 / 96
        for record in records:
            assert record.layer_loss == pytest.approx([mean, 2 * mean, 3 * mean, 4 * mean])
            assert record.train_loss == pytest.approx(2.5 * mean)
            assert (record.sip_first, record.sip_last) == (0, 2)
            assert record.valid_accuracy == pytest.approx(80.0)
            assert record.test_accuracy == pytest.approx(40.0)
            assert record.layer_valid_accuracy == pytest.approx([50.0, 55.0, 45.0, 80.0])
            assert record.layer_test_accuracy == pytest.approx([10.0, 30.0, 60.0, 90.0])
            assert record.sip_accuracy == [
                pytest.approx(row)
                for row in ([50, 60, 80, 70], [0, 55, 80, 65], [0, 0, 45, 40], [0, 0, 0, 80])
            ]
            assert record.cuts == [2]
            # 96 images in three times 2 s: neither evaluation nor checkpoints count
            assert record.images_per_s == pytest.approx(16.0)
        # 3 batches of 2 s and 2 evaluations of 1 s, in which the stages compute for 4 and 2 s
        assert records[0].elapsed_s == pytest.approx(8.0)
        assert records[0].stage_busy == pytest.approx([0.5, 0.25])
        assert read_metrics(tmp_path / "run" / "metrics.parquet") == records

    def test_the_model_has_the_layers_and_the_window(
        self, task: str, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        exported: list[dict[str, Any]] = []

        def export_model(self: RunDirectory, architecture: Any, states: Any, **how: Any) -> None:
            exported.append({**how, "layers": sorted(states)})

        monkeypatch.setattr(RunDirectory, "export_model", export_model)
        run = make_run(task, tmp_path / "run")
        train(run, stop_after=1, pipeline=lambda prepared: FakePipeline(clock, prepared))
        train(run, resume=True, pipeline=lambda prepared: FakePipeline(clock, prepared))
        windows = [each.pop("window") for each in exported]
        assert windows == [(0, 3), (0, 2), (0, 2)]  # all layers before the first evaluation
        names = ("0", "1", "2", "3")
        expected = {
            "class_names": names,
            "precision": "fp32",
            "method": "ff",
            "layers": [0, 1, 2, 3],
        }
        assert exported == [expected] * 3

    def test_the_checkpoint_tells_where_the_run_stands(
        self, task: str, tmp_path: Path, clock: Clock
    ) -> None:
        run = make_run(task, tmp_path / "run")
        train(run, stop_after=2, pipeline=lambda prepared: FakePipeline(clock, prepared))
        progress = prepare(run, resume=True).progress
        assert (progress.epoch, progress.batch, progress.images) == (0, 2, 80)
        assert progress.loss_sums == pytest.approx((120, 240, 360, 480))
        train(run, resume=True, pipeline=lambda prepared: FakePipeline(clock, prepared))
        progress = prepare(run, resume=True).progress
        assert (progress.epoch, progress.batch, progress.images) == (2, 0, 0)
        assert progress.loss_sums == ()


def test_the_hits_of_an_evaluation_in_several_chunks_are_added() -> None:
    tally = loop_module.EpochTally()
    for split, hits, images in (("valid", 3, 128), ("valid", 4, 20), ("test", 5, 7)):
        command = Evaluate(epoch=0, split=split, batches=())  # type: ignore[arg-type]
        stages = [
            Report(started_s=0, busy_s=1.5, images=images),
            Report(started_s=0, busy_s=0.5, images=images, hits=np.full((2, 2), hits)),
        ]
        tally.add(command, stages, seconds=2.0)
    assert {split: hits.tolist() for split, hits in tally.hits.items()} == {
        "valid": [[7, 7], [7, 7]],
        "test": [[5, 5], [5, 5]],
    }
    assert tally.evaluated == 155
    assert tally.busy_s.tolist() == [4.5, 1.5]
    assert (tally.images, tally.train_s) == (0, 0.0)


class TestTheObserver:
    def test_sees_events_in_order(self, task: str, tmp_path: Path) -> None:
        _, diary = train(make_run(task, tmp_path / "run"))
        assert diary.lines == [
            *("train 0", "train 1", "train 2", "valid", "test", "epoch 1", "step-00000003"),
            *("train 3", "train 4", "train 5", "valid", "test", "epoch 2", "step-00000006"),
        ]

    def test_sees_only_what_is_left_after_a_stop(self, task: str, tmp_path: Path) -> None:
        run = make_run(task, tmp_path / "run")
        _, diary = train(run, stop_after=2)
        assert diary.lines == ["train 0", "train 1", "step-00000002"]
        records, diary = train(run, resume=True)
        assert diary.lines == [
            *("train 2", "valid", "test", "epoch 1", "step-00000003"),
            *("train 3", "train 4", "train 5", "valid", "test", "epoch 2", "step-00000006"),
        ]
        assert [record.epoch for record in diary.records] == [1, 2]
        assert records == diary.records

    def test_gets_the_records_that_are_returned(self, task: str, tmp_path: Path) -> None:
        records, diary = train(make_run(task, tmp_path / "run"))
        assert diary.records == records


class TestStopAndResume:
    @pytest.fixture(scope="class")
    @classmethod
    def undisturbed(cls, task: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
        run = make_run(task, tmp_path_factory.mktemp("undisturbed") / "run")
        records, _ = train(run)
        files = layer_files(run, 2 * BATCHES)
        assert len(files) == 4
        return timeless(records), files

    def check(self, run: TrainConfig, undisturbed: Any) -> None:
        """Compare files and records, train_loss bit for bit, with the undisturbed run's."""
        assert layer_files(run, 2 * BATCHES) == undisturbed[1]
        saved = read_metrics(Path(str(run.run_dir)) / "metrics.parquet")
        assert timeless(saved) == undisturbed[0]

    @pytest.mark.parametrize("stop_after", range(1, 10))
    def test_at_every_place_ends_with_the_same_bits(
        self, task: str, tmp_path: Path, undisturbed: Any, stop_after: int
    ) -> None:
        run = make_run(task, tmp_path / "run")
        train(run, stop_after=stop_after)
        records, _ = train(run, resume=True, chunk=2)
        assert timeless(records) == undisturbed[0]
        self.check(run, undisturbed)

    def test_again_and_again_and_with_other_cuts(
        self, task: str, tmp_path: Path, undisturbed: Any
    ) -> None:
        run = make_run(task, tmp_path / "run")
        train(run, stop_after=1)
        for cuts in ((), (1,), (1, 2, 3), (3,), (2,), (1, 3)):
            train(run, resume=True, stop_after=2, cuts=cuts)
        self.check(run, undisturbed)

    def test_a_run_that_is_complete_stays_as_it_is(
        self, task: str, tmp_path: Path, undisturbed: Any
    ) -> None:
        run = make_run(task, tmp_path / "run")
        train(run)
        (tmp_path / "run" / "model.safetensors").unlink()
        records, diary = train(run, resume=True)
        assert timeless(records) == undisturbed[0]
        assert diary.lines == ["step-00000006"]
        RunDirectory(tmp_path / "run").load_model()  # is there again

    @pytest.mark.parametrize("stop_after", [3, 4])
    def test_a_stop_before_or_in_an_evaluation_is_over_when_the_evaluation_is(
        self, task: str, tmp_path: Path, stop_after: int
    ) -> None:
        run = make_run(task, tmp_path / "run", epochs=1)
        train(run, stop_after=stop_after)
        train(run, resume=True)
        _, diary = train(run, resume=True)
        assert diary.lines == ["step-00000003"]

    def test_a_lost_run_goes_on_from_its_last_epoch(
        self, task: str, tmp_path: Path, undisturbed: Any
    ) -> None:
        run = make_run(task, tmp_path / "run")

        def die(number: int) -> None:
            if number == 7:
                raise RuntimeError("power cut")

        with pytest.raises(RuntimeError):
            train(run, callback=Diary(die))
        records, diary = train(run, resume=True)
        assert diary.lines[0] == "train 3"
        assert timeless(records) == undisturbed[0]
        self.check(run, undisturbed)

    def test_a_row_without_its_checkpoint_is_written_anew(
        self, task: str, tmp_path: Path, undisturbed: Any
    ) -> None:
        run = make_run(task, tmp_path / "run", checkpoint_every=2)

        def die(number: int) -> None:
            if number == 6:  # epoch 1 is in the metrics and has no checkpoint
                raise RuntimeError("power cut")

        with pytest.raises(RuntimeError):
            train(run, callback=Diary(die))
        assert len(read_metrics(tmp_path / "run" / "metrics.parquet")) == 1
        train(run, resume=True)
        self.check(run, undisturbed)


class TestACheckpointThatCannotBeWritten:
    FULL = OSError(errno.ENOSPC, "No space left on device")

    def fail_at(self, monkeypatch: pytest.MonkeyPatch, module: Any, step: str | None) -> None:
        """Let writes fail in the checkpoint of that step, or in all that is exported."""

        def write(path: Path, data: bytes | memoryview) -> None:
            if step is None or step in str(path):
                raise self.FULL
            write_durably(path, data)

        monkeypatch.setattr(module, "write_durably", write)

    def test_warns_and_training_goes_on(
        self, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = make_run(task, tmp_path / "whole")
        train(whole)
        run = make_run(task, tmp_path / "run")
        self.fail_at(monkeypatch, checkpoint_module, "step-00000003")
        records, diary = train(run)
        assert len(records) == 2
        (warning,) = [line for line in diary.lines if line.startswith("warning")]
        assert "step 3" in warning
        assert "No space left on device" in warning
        assert "training goes on" in warning
        assert layer_files(run, 6) == layer_files(whole, 6)
        assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [
            "step-00000006"
        ]

    def test_the_final_one_raises_and_the_one_before_stays(
        self, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = make_run(task, tmp_path / "run")
        self.fail_at(monkeypatch, checkpoint_module, "step-00000006")
        with pytest.raises(RunError, match="No space left.*make room"):
            train(run)
        latest = prepare(run, resume=True).checkpoint
        assert latest is not None
        assert latest.step == 3
        monkeypatch.undo()
        train(run, resume=True)
        assert len(layer_files(run, 6)) == 4

    def test_so_does_the_final_one_of_a_stop(
        self, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = make_run(task, tmp_path / "run")
        self.fail_at(monkeypatch, checkpoint_module, "step-00000004")
        with pytest.raises(RunError, match="No space left.*make room"):
            train(run, stop_after=6)
        assert prepare(run, resume=True).progress.epoch == 1

    def test_a_model_that_cannot_be_written_is_when_the_run_is_resumed(
        self, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = make_run(task, tmp_path / "run")

        def write(path: Path, data: bytes | memoryview) -> None:
            if "model.safetensors" in path.name:
                raise self.FULL
            write_durably(path, data)

        monkeypatch.setattr(files, "write_durably", write)
        with pytest.raises(RunError, match="No space left.*make room"):
            train(run)
        monkeypatch.undo()
        train(run, resume=True)
        model = RunDirectory(tmp_path / "run").load_model()
        weights = [layer.weight for layer in model.chain.cwconvs()]
        saved = [load(state)["weight"] for _, state in sorted(layer_files(run, 6).items())]
        assert all(torch.equal(a, b) for a, b in zip(weights, saved, strict=True))


class BrokenLater:
    """The local pipeline, one weight of which is lost after a snapshot."""

    def __init__(self, prepared: Prepared, layer: int) -> None:
        self.pipeline = local_pipeline(prepared)
        self.layer = layer

    def stream(self, commands: Iterable[Command]) -> Iterator[Result]:
        for command, reports in self.pipeline.stream(commands):
            yield command, reports
            if isinstance(command, Snapshot):
                weight = self.pipeline.stages[0].learner.chain.cwconvs()[self.layer].weight
                weight.data[0, 0, 0, 0] = float("nan")


class TestDivergence:
    @pytest.mark.parametrize("layer", [0, 2])
    def test_leaves_the_last_good_checkpoint(self, task: str, tmp_path: Path, layer: int) -> None:
        run = make_run(task, tmp_path / "run", epochs=3)
        diary = Diary()
        with pytest.raises(TrainingDiverged, match=f"layer {layer} became nan at step 3"):
            train(run, callback=diary, pipeline=lambda prepared: BrokenLater(prepared, layer))
        assert diary.lines[-1] == "step-00000003"
        latest = prepare(run, resume=True).checkpoint
        assert latest is not None
        assert latest.step == 3
        assert all(load(s.tobytes())["weight"].isfinite().all() for s in latest.states.values())
        assert len(read_metrics(tmp_path / "run" / "metrics.parquet")) == 1
        RunDirectory(tmp_path / "run").load_model()

    def test_in_the_last_batch_of_an_epoch_is_not_written_over_the_good_one(
        self, task: str, tmp_path: Path
    ) -> None:
        """The loss is that of the weights before the step, so it is still finite."""
        run = make_run(task, tmp_path / "run", keep_checkpoints=1, batch_size=96)
        train(run, stop_after=3)
        good = layer_files(run, 1)
        assert len(good) == 4

        def break_the_step(prepared: Prepared) -> Any:
            pipeline = local_pipeline(prepared)
            pipeline.stages[0].learner.optimizers[1].weight_decay = float("nan")
            return pipeline

        with pytest.raises(TrainingDiverged, match="layer 1 became nan at step 2"):
            train(run, resume=True, pipeline=break_the_step)
        assert layer_files(run, 1) == good
        assert prepare(run, resume=True).progress.epoch == 1
