"""A small object store: the stream waits, and neither spills nor stands still."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray._private.internal_api import memory_summary

from rayff import TrainConfig
from rayff.distributed import pipeline
from tests.helpers.ray_instance import local_ray
from tests.helpers.runs import RecordingCallback, layer_files, train_locally, train_on_ray
from tests.helpers.stages import once
from tests.helpers.tiny_task import write_tiny_task

pytestmark = [pytest.mark.ray, pytest.mark.slow]

MIB = 2**20
STORE = 80 * MIB
IMAGES = 5
"""MiB of the task's images, which the store holds as long as the run."""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray(object_store_memory=STORE):
        yield


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_task(tmp_path_factory.mktemp("task"), num_train=1600)


def make_config(task: str, run_dir: Path, **changes: Any) -> TrainConfig:
    options: dict[str, Any] = {
        "width": 40,  # 40 channels of 32 x 32 cross the cut: 2.5 MiB a batch of 16
        "epochs": 1,
        "batch_size": 16,
        "lr": 0.01,
        "cuts": (1,),
        "chunk": 5,  # 12.5 MiB a message
        "precision": "fp32",
        "kernels": "conv",
        "cpus_per_stage": 1,
    }
    return TrainConfig(**{**options, **changes}, task=task, run_dir=str(run_dir))


def spilled() -> bool:
    address = ray.get_runtime_context().gcs_address
    return "Spilled" in memory_summary(address=address, stats_only=True)


def train(config: TrainConfig, seen: RecordingCallback) -> list[str]:
    """Train, and return the warnings of the window."""
    train_on_ray(config, seen)
    return [line for line in seen.lines if "window" in line]


def test_a_window_that_does_not_fit_shrinks_with_a_warning_and_nothing_spills(
    task: str, tmp_path: Path
) -> None:
    config = make_config(task, tmp_path / "run", window=12)
    (warning,) = train(config, RecordingCallback())
    assert "80 MiB and a chunk 12: the window shrinks from 12 to 3 chunks" in warning
    assert not spilled()
    alone = make_config(task, tmp_path / "alone", cuts=None, chunk=1)
    train_locally(alone)
    assert layer_files(config.run_dir) == layer_files(alone.run_dir)


def test_other_work_that_fills_the_store_makes_the_window_shrink(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other work alone leaves too little free, and the messages are small beside what is
    left until Ray spills: it frees what was used a moment later where the machine is busy."""
    others: list[Any] = []

    def fill() -> None:
        others.extend(ray.put(np.zeros(MIB, dtype=np.uint8)) for _ in range(53 - IMAGES))

    monkeypatch.setattr(pipeline, "STORE_EVERY_S", 0.1)
    config = make_config(task, tmp_path / "run", chunk=1, width=16)  # 1 MiB a message
    warnings = train(config, RecordingCallback(once("train 0", fill)))
    assert warnings
    assert all("the object store is nearly full" in line for line in warnings)
    assert "the window shrinks to 3 chunks" in warnings[0]
    assert not spilled()
