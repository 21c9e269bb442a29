"""Promises 2 and 3 for images that are streamed: cuts, resumption and failures change nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from rayff import TrainConfig, load_model
from rayff.config.errors import UserError
from rayff.distributed.reading import hand_over
from rayff.engine.evaluation import evaluate
from rayff.engine.run import TrainResult
from rayff.runs.run_directory import RunDirectory
from tests.data.files import encoded, image_structs, load, random_pixels
from tests.helpers.ray_instance import local_ray
from tests.helpers.runs import (
    RecordingCallback,
    StopAfter,
    layer_files,
    timeless,
    train_locally,
    train_on_ray,
)
from tests.helpers.stages import kill_actor, once
from tests.helpers.tiny_task import tiny_config

ROWS = {"train": 96, "validation": 20, "test": 30}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Row groups of 7, of images with 40 pixels a side."""
    folder = tmp_path_factory.mktemp("streamed") / "noise"
    folder.mkdir()
    for split, rows in ROWS.items():
        images = [encoded(random_pixels(row, size=40, channels=3)) for row in range(rows)]
        labels = [row % 4 for row in range(rows)]
        table = pa.table({"image": image_structs([*images]), "label": labels})
        pq.write_table(table, folder / f"{split}.parquet", row_group_size=7)
    return str(folder)


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayff.data.streaming.MAX_WINDOW_ROWS", 32)


def config_of(task: str, run_dir: Path, **changes: Any) -> TrainConfig:
    how = {"stream": True, "augment": "crop,flip", "loss": "linear", "kernels": "conv", **changes}
    return tiny_config(task, run_dir, **how)


@pytest.fixture(scope="module")
def alone(task: str, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rayff.data.streaming.MAX_WINDOW_ROWS", 32)
        return train_locally(config_of(task, tmp_path_factory.mktemp("alone") / "run"))


def assert_same(result: TrainResult, alone: TrainResult) -> None:
    assert timeless(result.metrics) == timeless(alone.metrics)
    assert layer_files(result.run_dir) == layer_files(alone.run_dir)


@pytest.mark.parametrize("how", [{"cuts": (1, 3)}, {"chunk": 3}], ids=str)
def test_cuts_and_chunks(how: dict[str, Any], task: str, alone: TrainResult, tmp_path: Path):
    assert_same(train_locally(config_of(task, tmp_path / "run", **how)), alone)


def test_another_order_than_that_of_images_in_memory(
    task: str, alone: TrainResult, tmp_path: Path
):
    stored = train_locally(config_of(task, tmp_path / "run", stream=False))
    assert layer_files(stored.run_dir) != layer_files(alone.run_dir)


@pytest.mark.parametrize("chunks", [1, 2, 7])
def test_resumed_in_the_middle_of_an_epoch(
    chunks: int, task: str, alone: TrainResult, tmp_path: Path
):
    config = config_of(task, tmp_path / "run")
    stopped = train_locally(config, StopAfter(chunks))
    assert not stopped.complete
    assert_same(train_locally(config, resume=True), alone)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_run_that_chose_by_its_memory_keeps_its_choice(
    streamed: bool, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def memory(free: int) -> None:
        monkeypatch.setattr("rayff.data.loading.memory_bytes", lambda: (2**40, free))

    config = config_of(task, tmp_path / "run", stream=False)
    memory(1000 if streamed else 2**40)
    train_locally(config, StopAfter(2))
    assert RunDirectory(tmp_path / "run").read_config().stream == streamed
    memory(2**40 if streamed else 1000)
    resumed = train_locally(config, resume=True)
    memory(2**40)
    other = config_of(task, tmp_path / "other", stream=streamed)
    assert_same(resumed, train_locally(other))


def test_evaluated_as_in_training(alone: TrainResult):
    found = evaluate(alone.run_dir, num_mistakes=3)
    assert found.accuracy == pytest.approx(alone.metrics[-1].test_accuracy)
    assert len(found.mistakes) == 3
    model = load_model(alone.run_dir)
    for mistake in found.mistakes:
        logits = model(torch.from_numpy(np.array(mistake.image))[None])
        assert int(logits.argmax()) == mistake.predicted


def test_other_data_is_refused_when_it_is_resumed(task: str, tmp_path: Path):
    folder = tmp_path / "noise"
    folder.mkdir()
    for split in ROWS:
        table = pq.read_table(f"{task}/{split}.parquet")
        pq.write_table(table, folder / f"{split}.parquet", row_group_size=7)
    config = config_of(str(folder), tmp_path / "run")
    train_locally(config, StopAfter(2))
    table = pq.read_table(folder / "train.parquet")
    labels = pa.array(table.column("label").to_pylist()[::-1])
    pq.write_table(table.set_column(1, "label", labels), folder / "train.parquet")
    with pytest.raises(UserError, match="was trained on other data: labels, images or classes"):
        train_locally(config, resume=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray(num_cpus=3):
        yield


@pytest.mark.ray
@pytest.mark.usefixtures("cluster")
class TestOnRay:
    def test_images_in_memory_are_handed_over(self, task: str):
        data = load(task, image_size=40)
        whole = {split: images.images.copy() for split, images in data.splits.items()}
        mark = data.fingerprint
        shared = hand_over(data)
        assert all(images.images.size == 0 for images in data.splits.values())
        assert [len(images) for images in data.splits.values()] == [96, 20, 30]
        assert (data.image_channels, data.image_size, data.fingerprint) == (3, 40, mark)
        for split, images in ray.get(shared.reference).items():
            assert (images.images == whole[split]).all()

    def test_two_stages_of_which_one_is_killed(
        self, task: str, alone: TrainResult, tmp_path: Path
    ):
        kill = once("train 1", lambda: kill_actor("stage-0"))
        config = self.config(task, tmp_path, stages=2)
        assert_same(train_on_ray(config, RecordingCallback(kill)), alone)

    def test_killed_readers(self, task: str, alone: TrainResult, tmp_path: Path):
        killed: list[int] = []

        def kill_readers(line: str) -> None:
            for process in psutil.process_iter(["cmdline"]):
                command = process.info["cmdline"] or [""]
                if command[0].startswith("ray::Reader") and len(killed) < 6:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)

        config = self.config(task, tmp_path, stages=1)
        assert_same(train_on_ray(config, RecordingCallback(kill_readers)), alone)
        assert killed

    def test_replicas_share_each_batch(self, task: str, tmp_path: Path):
        """By an optimizer that does not magnify the rounding of sums; one CPU is free for both."""
        how = {"optimizer": "sgd", "lr": 0.1}
        alone = train_locally(config_of(task, tmp_path / "alone", **how))
        result = train_on_ray(self.config(task, tmp_path, replicas="2", **how))
        for record, other in zip(result.metrics, alone.metrics, strict=True):
            assert record.layer_loss == pytest.approx(other.layer_loss, rel=1e-5)

    def config(self, task: str, tmp_path: Path, **changes: Any) -> TrainConfig:
        how = {"chunk": 1, "cpus_per_stage": 1, "precision": "fp32", **changes}
        return config_of(task, tmp_path / "run", **how)
