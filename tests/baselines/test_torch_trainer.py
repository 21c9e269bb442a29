"""Backpropagation by Ray Train's workers: the batch is divided, a worker may die."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load

from rayff import TrainConfig
from rayff.config.errors import UserError
from rayff.engine.evaluation import evaluate
from rayff.engine.run import TrainResult
from tests.helpers.ray_instance import local_ray
from tests.helpers.runs import (
    RecordingCallback,
    layer_files,
    timeless,
    train_locally,
    train_on_ray,
)
from tests.helpers.stages import OPTIONS, once

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture(scope="module")
def options(tiny_task: str) -> dict[str, Any]:
    changed = {"method": "bp-deepsup", "epochs": 2, "dropout": 0.25, "kernels": None, "lr": None}
    return {**OPTIONS, **changed, "task": tiny_task}


@pytest.fixture(scope="module")
def alone(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    return train_locally(TrainConfig(**options, run_dir=str(run_dir)))


@pytest.fixture(scope="module")
def by_two(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    run_dir = tmp_path_factory.mktemp("two") / "run"
    seen = RecordingCallback()
    result = train_on_ray(TrainConfig(**options, workers=2, run_dir=str(run_dir)), seen)
    warnings = [line for line in seen.lines if line.startswith("warning")]
    assert all("waiting for 2 workers" in line for line in warnings), "on a busy machine"
    return result


def workers() -> list[int]:
    """Return the process ids of the workers that are there."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or [])
        and os.getpid() in [parent.pid for parent in process.parents()]
    ]


def test_one_worker_ends_with_the_bits_of_one_process(
    options: dict[str, Any], alone: TrainResult, tmp_path: Path
) -> None:
    result = train_on_ray(TrainConfig(**options, workers=1, run_dir=str(tmp_path / "run")))
    assert layer_files(result.run_dir) == layer_files(alone.run_dir)
    assert timeless(result.metrics) == timeless(alone.metrics)
    assert result.metrics[-1].cuts == []
    accuracy = evaluate(result.run_dir).accuracy
    assert accuracy == pytest.approx(result.metrics[-1].test_accuracy)


def test_two_workers_change_nothing_but_the_rounding_of_sums(
    by_two: TrainResult, alone: TrainResult
) -> None:
    one, two = layer_files(alone.run_dir), layer_files(by_two.run_dir)
    assert one.keys() == two.keys()
    assert one != two
    for name, state in one.items():
        expected, found = load(state), load(two[name])
        for key, value in expected.items():
            if not key.startswith("optimizer."):
                assert (value - found[key]).abs().max() < 2e-3, (name, key)


def test_a_worker_that_dies_changes_nothing(
    options: dict[str, Any], tmp_path: Path, by_two: TrainResult
) -> None:
    def kill() -> None:
        os.kill(workers()[-1], signal.SIGKILL)

    seen = RecordingCallback(once("train 8", kill))
    result = train_on_ray(TrainConfig(**options, workers=2, run_dir=str(tmp_path / "run")), seen)
    (warning,) = [line for line in seen.lines if "failure 1 of 3" in line]
    assert re.search(r"worker [01] died: .*worker process has died", warning)
    assert "starting again from the snapshot of step 6" in warning
    assert layer_files(result.run_dir) == layer_files(by_two.run_dir)
    assert timeless(result.metrics) == timeless(by_two.metrics)
    assert not workers()


def test_more_workers_than_the_cluster_holds_are_refused_at_once(
    options: dict[str, Any], tmp_path: Path
) -> None:
    config = TrainConfig(**options, workers=5, run_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match="5 actors of 0 GPUs and 1 CPUs each are needed.*workers"):
        train_on_ray(config)
    assert not (tmp_path / "run").exists()
