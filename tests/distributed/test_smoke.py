"""Each capability of Ray once: train and recover, resume, tune (a job is in tests/jobs)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rayff import TrainConfig
from rayff.engine.evaluation import evaluate
from rayff.engine.run import TrainResult
from rayff.tune.__main__ import main as tune
from tests.helpers.modules import HERE
from tests.helpers.ray_instance import local_ray
from tests.helpers.runs import (
    RecordingCallback,
    StopAfter,
    events,
    layer_files,
    timeless,
    train_locally,
    train_on_ray,
)
from tests.helpers.stages import OPTIONS, kill_actor, once

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray(num_cpus=3):
        yield


@pytest.fixture(scope="module")
def options(tiny_task: str) -> dict[str, Any]:
    return {**OPTIONS, "task": tiny_task}


@pytest.fixture(scope="module")
def alone(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """The training in one process, without Ray."""
    run_dir = tmp_path_factory.mktemp("alone") / "run"
    return train_locally(TrainConfig(**options, run_dir=str(run_dir)))


def test_modules_train_on_two_stages_with_the_bits_of_one_process(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Batch norm, what modules draw, and heads: with a stage that is killed on the way."""
    how = {**options, "arch": f"{HERE}:every_kind", "loss": "predsim", "kernels": None}
    alone = train_locally(TrainConfig(**how, run_dir=str(tmp_path / "alone")))
    config = TrainConfig(**how, stages=2, run_dir=str(tmp_path / "run"))
    kill = once("train 10", lambda: kill_actor("stage-1"))
    result = train_on_ray(config, RecordingCallback(kill))
    assert [len(record.stage_busy) for record in result.metrics] == [2, 2, 2]
    assert timeless(result.metrics) == timeless(alone.metrics)
    assert layer_files(result.run_dir) == layer_files(alone.run_dir)
    accuracy = evaluate(result.run_dir).accuracy
    assert accuracy == pytest.approx(result.metrics[-1].test_accuracy)


@pytest.mark.smoke
def test_a_run_recovers_from_a_killed_stage_with_the_same_bits(
    options: dict[str, Any], alone: TrainResult, tmp_path: Path
) -> None:
    config = TrainConfig(**options, cuts=(2,), run_dir=str(tmp_path / "run"))
    kill = once("train 10", lambda: kill_actor("stage-1"))
    result = train_on_ray(config, RecordingCallback(kill))
    (failure,) = events(result.run_dir, "failure")
    assert failure["stage"] == "stage 1 (layers 2-3)"
    assert [len(record.stage_busy) for record in result.metrics] == [2, 2, 2]
    assert timeless(result.metrics) == timeless(alone.metrics)
    assert layer_files(result.run_dir) == layer_files(alone.run_dir)
    accuracy = evaluate(result.run_dir).accuracy
    assert accuracy == pytest.approx(result.metrics[-1].test_accuracy)


@pytest.mark.smoke
def test_a_run_resumes_on_another_number_of_stages_with_the_same_bits(
    options: dict[str, Any], alone: TrainResult, tmp_path: Path
) -> None:
    options = {**options, "run_dir": str(tmp_path / "run")}
    stopped = train_on_ray(TrainConfig(**options, stages=2), StopAfter(chunks=7))
    assert not stopped.complete
    result = train_on_ray(TrainConfig(**options, stages=3), resume=True)
    assert [len(event["stages"]) for event in events(result.run_dir, "planned")] == [2, 3]
    assert timeless(result.metrics) == timeless(alone.metrics)
    assert layer_files(result.run_dir) == layer_files(alone.run_dir)


@pytest.mark.smoke
def test_a_search_trains_its_trials(options: dict[str, Any], tmp_path: Path) -> None:
    space = {**options, "epochs": 1, "stages": 1, "lr_min": 0.0}
    (tmp_path / "space.py").write_text(
        f"from ray import tune\nparam_space = {{**{space}, 'lr': tune.grid_search([0.0, 0.01])}}\n"
    )
    folder = tmp_path / "search"
    assert tune([str(tmp_path / "space.py"), "--run-dir", str(folder)]) == 0
    rows = pq.read_table(folder / "results.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["finished", "finished"]
    assert [row["epoch"] for row in rows] == [1, 1]
