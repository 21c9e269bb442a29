"""The loop: its records against reports made by hand."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rayff.engine import local
from rayff.engine import loop as loop_module
from rayff.engine.callbacks import Callback
from rayff.engine.commands import Command, Evaluate, Report, Train
from rayff.engine.pipeline import Result
from rayff.engine.preparation import prepare
from rayff.engine.run import Run
from rayff.runs.metrics import IntervalRecord, read_metrics
from tests.helpers.runs import StopAfter, events, train_locally
from tests.helpers.tiny_task import BATCHES, tiny_config


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

    def __init__(self, clock: Clock, run: Run) -> None:
        self.clock = clock
        self.network = run.architecture

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
            self.report(2.0, 1.0, 1.0, images=images, loss_sums=(1.0 * scale, 2.0 * scale)),
            self.report(0.5, 0.5, 1.5, images=images, loss_sums=(3.0 * scale, 4.0 * scale)),
        ]

    def evaluate(self, command: Evaluate) -> list[Report]:
        self.clock.now_s += 1
        images = len(command.batches[0])
        hits = np.array(self.VALID if command.split == "valid" else self.TEST)
        return [
            self.report(1.0, 0.5, 0.5, images=images),
            self.report(0.25, 0.25, 0.75, images=images, hits=hits),
        ]

    def report(self, ago_s: float, busy_s: float, idle_s: float, **facts: Any) -> Report:
        started_s = self.clock.now_s - ago_s
        return Report(started_s=started_s, busy_s=busy_s, idle_s=idle_s, **facts)

    def snapshot(self) -> list[Report]:
        self.clock.now_s += 10
        states = {
            layer.index: np.frombuffer(save({"weight": torch.zeros(layer.weight_shape)}), np.uint8)
            for layer in self.network.layers
        }
        first, last = ({i: states[i] for i in part} for part in ((0, 1), (2, 3)))
        return [
            self.report(0.0, 0.0, 10.0, states=first),
            self.report(0.0, 0.0, 10.0, states=last),
        ]


@pytest.fixture(autouse=True)
def _fake_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(loop_module, "time", clock)
    monkeypatch.setattr(local, "local_pipeline", lambda run, *args: FakePipeline(clock, run))


def test_the_records_of_an_epoch(tiny_task: str, tmp_path: Path) -> None:
    config = tiny_config(tiny_task, tmp_path / "run", lr=0.08, lr_min=0.008, cuts=(2,))
    records = train_locally(config).metrics
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
        assert record.last_valid_accuracy == pytest.approx(80.0)
        assert record.last_test_accuracy == pytest.approx(90.0)
        assert record.fusion_test_accuracy is None, "the reports have no logits"
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
    for record in records:
        assert record.stage_busy == pytest.approx([0.5, 0.25]), "checkpoints do not count"
    assert read_metrics(tmp_path / "run" / "metrics.parquet") == records
    (running,) = events(tmp_path / "run", "running")
    assert (running["epoch"], running["stages"]) == (0, 2)


def test_intervals_are_logged_at_multiples_of_batches(tiny_task: str, tmp_path: Path) -> None:
    intervals: list[IntervalRecord] = []

    class Logs(Callback):
        def on_interval(self, record: IntervalRecord) -> None:
            intervals.append(record)

    config = tiny_config(tiny_task, tmp_path / "run", lr=0.08, lr_min=0.008, log_every=2)
    train_locally(config, Logs())
    # batches of 40, 40 and 16 images; of an epoch's first batch the losses are 1, 2, 3 and 4
    assert [(record.epoch, record.step) for record in intervals] == [(1, 2), (2, 4), (2, 6)]
    assert [record.lr for record in intervals] == pytest.approx([0.08, 0.044, 0.044])
    mean = [(40 + 80) / 80, (32 + 40) / 56, 2.0]
    assert [record.layer_loss[3] for record in intervals] == pytest.approx([4 * m for m in mean])
    assert [record.loss for record in intervals] == pytest.approx([2.5 * m for m in mean])
    assert [record.images_per_s for record in intervals] == pytest.approx([20.0, 14.0, 14.0])
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    found = events.Scalars("batch/layer_loss/3")
    assert [(point.step, point.value) for point in found] == [
        (record.step, pytest.approx(record.layer_loss[3])) for record in intervals
    ]
    assert {"batch/loss", "batch/lr", "batch/images_per_s"} <= set(events.Tags()["scalars"])


def test_the_model_has_the_window_of_the_newest_epoch(tiny_task: str, tmp_path: Path) -> None:
    def described() -> tuple[list[int], list[str], str]:
        about = json.loads((tmp_path / "run" / "architecture.json").read_text())
        return about["sip_window"], about["class_names"], about["precision"]

    config = tiny_config(tiny_task, tmp_path / "run")
    train_locally(config, StopAfter(1))
    names = ["0", "1", "2", "3"]
    assert described() == ([0, 3], names, "fp32")  # all layers before the first evaluation
    train_locally(config, resume=True)
    assert described() == ([0, 2], names, "fp32")


def test_a_checkpoint_has_the_position_of_the_run(tiny_task: str, tmp_path: Path) -> None:
    config = tiny_config(tiny_task, tmp_path / "run")
    train_locally(config, StopAfter(2))
    progress = prepare(config, resume=True).progress
    assert (progress.epoch, progress.batch, progress.images) == (0, 2, 80)
    assert progress.loss_sums == pytest.approx((120, 240, 360, 480))
    train_locally(config, resume=True)
    progress = prepare(config, resume=True).progress
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


def test_the_pace_is_the_seconds_of_each_stage_for_a_batch() -> None:
    pace = loop_module.Pace()
    assert pace.stage_s is None
    for size, busy_s in ((3, (6.0, 3.0)), (1, (2.0, 2.0))):
        command = Train(epoch=0, step=0, lrs=(0.1,) * size, batches=(np.arange(2),) * size)
        pace.add(command, [Report(started_s=0, busy_s=busy) for busy in busy_s])
    assert pace.stage_s == [2.0, 1.25]
