"""Backpropagation by Ray Train's workers: the batch is divided, a worker may die."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load

import rayff
from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from tests.distributed.test_controller import SearchCallback, layer_files, train_watched
from tests.engine.local_run import timeless
from tests.helpers.ray_instance import local_ray
from tests.helpers.tiny_task import write_tiny_task
from tests.training import local_run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

OPTIONS: dict[str, Any] = {
    "arch": "tinycnn",
    "width": 4,
    "method": "bp-deepsup",
    "epochs": 2,
    "batch_size": 16,  # six batches an epoch
    "dropout": 0.25,
    "precision": "fp32",
    "cpus_per_stage": 1,
    "chunk": 2,
}
LAST = 12


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def in_process(task: str, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Train without Ray, by one worker with one thread."""
    run = TrainConfig(**OPTIONS, task=task, run_dir=str(tmp_path_factory.mktemp("alone") / "run"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    local_run.train(run, chunk=2)
    torch.set_num_threads(threads)
    return run


@pytest.fixture(scope="module")
def by_two(task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two") / "run"
    run = TrainConfig(**OPTIONS, workers=2, task=task, run_dir=str(path))
    _, watcher = train_watched(run)
    assert not [line for line in watcher.lines if line.startswith("warning")]
    return path


def workers() -> list[int]:
    """Return the process ids of the workers that are there."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "RayTrainWorker" in " ".join(process.info["cmdline"] or [])
        and os.getpid() in [parent.pid for parent in process.parents()]
    ]


def test_one_worker_ends_with_the_bits_of_one_process(
    task: str, tmp_path: Path, in_process: TrainConfig
) -> None:
    run = TrainConfig(**OPTIONS, workers=1, task=task, run_dir=str(tmp_path / "run"))
    result, _ = train_watched(run)
    assert layer_files(tmp_path / "run", LAST) == local_run.layer_files(in_process, LAST)
    assert result.records[-1].cuts == []
    assert rayff.evaluate(tmp_path / "run").accuracy == pytest.approx(
        result.records[-1].test_accuracy
    )


def test_two_workers_change_nothing_but_the_rounding_of_sums(
    by_two: Path, in_process: TrainConfig
) -> None:
    alone, two = local_run.layer_files(in_process, LAST), layer_files(by_two, LAST)
    assert alone.keys() == two.keys()
    assert alone != two
    for name, state in alone.items():
        expected, found = load(state), load(two[name])
        for key, value in expected.items():
            if not key.startswith("optimizer."):
                assert (value - found[key]).abs().max() < 2e-3, (name, key)


def test_a_worker_that_dies_changes_nothing(task: str, tmp_path: Path, by_two: Path) -> None:
    killed: list[int] = []

    def kill(line: str) -> None:
        if line == "train 8" and not killed:
            killed.extend(workers()[-1:])
            assert killed, "there is a worker to kill"
            os.kill(killed[0], signal.SIGKILL)

    run = TrainConfig(**OPTIONS, workers=2, task=task, run_dir=str(tmp_path / "run"))
    _, watcher = train_watched(run, SearchCallback(kill))
    lost = [line for line in watcher.lines if "failure 1 of 3" in line]
    assert len(lost) == 1
    assert "died" in lost[0]
    assert "starting again from the snapshot of step 6" in lost[0]
    assert layer_files(tmp_path / "run", LAST) == layer_files(by_two, LAST)
    assert timeless(watcher.records)[-1].epoch == 2
    assert not workers()


def test_more_workers_than_the_cluster_holds_are_refused_at_once(
    task: str, tmp_path: Path
) -> None:
    run = TrainConfig(**OPTIONS, workers=5, task=task, run_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match="5 actors of 0 GPUs and 1 CPUs each are needed.*workers"):
        train_watched(run)
    assert not (tmp_path / "run").exists()
