"""Promise 3: a failure changes nothing. Processes of stages are killed."""

import dataclasses
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from rayff import TrainConfig
from rayff.config.errors import RunError
from rayff.distributed import stage_group
from rayff.engine.run import TrainResult
from rayff.runs.metrics import scalars
from tests.helpers.ray_instance import local_ray
from tests.helpers.runs import (
    RecordingCallback,
    events,
    layer_files,
    timeless,
    train_locally,
    train_on_ray,
)
from tests.helpers.stages import OPTIONS, call_actor, kill_actor, once

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture
def config(tiny_task: str, tmp_path: Path) -> TrainConfig:
    return TrainConfig(**OPTIONS, cuts=(2,), task=tiny_task, run_dir=str(tmp_path / "run"))


@pytest.fixture(scope="module")
def undisturbed(tiny_task: str, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    return train_locally(TrainConfig(**OPTIONS, task=tiny_task, run_dir=str(run_dir)))


@pytest.fixture
def loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MLflow in a folder, and Weights & Biases without its server."""
    uri = (tmp_path / "mlflow").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("WANDB_MODE", "offline")
    mlflow.set_tracking_uri(uri)
    yield
    mlflow.set_tracking_uri(None)


def assert_same(result: TrainResult, undisturbed: TrainResult) -> None:
    assert timeless(result.metrics) == timeless(undisturbed.metrics)
    assert layer_files(result.run_dir) == layer_files(undisturbed.run_dir)


@pytest.mark.parametrize(("stage", "when"), [(1, "valid"), (1, "step-00000006")], ids=str)
@pytest.mark.usefixtures("loggers")
def test_a_stage_that_is_killed_changes_no_bit(
    stage: int, when: str, config: TrainConfig, undisturbed: TrainResult
) -> None:
    """While it computes or sends, before the first snapshot, and behind one.

    Libraries get each epoch once.
    """
    killed_at: list[float] = []

    def kill() -> None:
        kill_actor(f"stage-{stage}")
        killed_at.append(time.time())

    seen = RecordingCallback(once(when, kill))
    result = train_on_ray(dataclasses.replace(config, logger="mlflow,wandb"), seen)
    assert_same(result, undisturbed)
    (warning,) = [line for line in seen.lines if re.search("died|window|logger", line)]
    assert f"stage {stage} (layers {2 * stage}-{2 * stage + 1}) died" in warning
    assert "failure 1 of 3" in warning
    (failure,) = events(result.run_dir, "failure")
    assert failure["time"] - killed_at[0] < 5
    assert failure["step"] >= failure["snapshot"]
    assert failure["snapshot"] in (0, 6, 12)
    (logged,) = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert (logged.info.run_name, logged.info.status) == ("run", "FINISHED")
    assert logged.data.metrics == scalars(result.metrics[-1])
    assert len(list(result.run_dir.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    assert not (result.run_dir / "tensorboard").exists()


@pytest.mark.parametrize(("stage", "survived"), [(0, 0), (1, 1)])
def test_a_stage_that_is_killed_while_its_snapshot_is_taken_changes_no_bit(
    stage: int, survived: int, config: TrainConfig, undisturbed: TrainResult
) -> None:
    """The other stage has taken its own; the run goes back to the complete snapshot before."""

    def die_in_snapshot(actor: Any) -> None:
        usual = actor.stage.learner.states
        taken: list[bool] = []

        def states() -> Any:
            result = usual()
            if len(taken) == survived:
                os.kill(os.getpid(), signal.SIGKILL)
            taken.append(True)
            return result

        actor.stage.learner.states = states

    # The window holds fewer commands than an epoch: no snapshot is under way yet.
    arm = once("train 0", lambda: call_actor(f"stage-{stage}", die_in_snapshot))
    result = train_on_ray(config, RecordingCallback(arm))
    assert_same(result, undisturbed)
    (failure,) = events(result.run_dir, "failure")
    assert failure["snapshot"] == 6 * survived


@pytest.mark.parametrize("moment", ["_await_start", "_set_up_calls"])
def test_a_stage_that_is_killed_while_it_starts_changes_no_bit(
    moment: str,
    config: TrainConfig,
    undisturbed: TrainResult,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = getattr(stage_group, moment)
    killed: list[bool] = []

    def deadly(*args: Any) -> Any:
        if not killed:
            killed.append(True)
            kill_actor("stage-1")
        return usual(*args)

    monkeypatch.setattr(stage_group, moment, deadly)
    seen = RecordingCallback()
    result = train_on_ray(config, seen)
    assert killed
    assert_same(result, undisturbed)
    assert sum("died" in line for line in seen.lines) == 1


def test_one_failure_too_many_ends_the_run_which_resumes(
    config: TrainConfig, undisturbed: TrainResult
) -> None:
    def kill(line: str) -> None:
        if line == "train 8":
            kill_actor("stage-0")

    few = dataclasses.replace(config, max_failures=1)
    with pytest.raises(
        RunError,
        match=r"stage 0 \(layers 0-1\) died: .*that was failure 2, and --max-failures is 1; "
        "its last checkpoint stays, continue with: rayff train --run-dir .* --resume",
    ):
        train_on_ray(few, RecordingCallback(kill))
    assert_same(train_on_ray(few, resume=True), undisturbed)


def test_a_slow_stage_loses_layers_at_a_snapshot(
    config: TrainConfig, undisturbed: TrainResult
) -> None:
    """Stage 1 computes on a machine that becomes slow; the bits do not change with the cut."""

    def slow_down(actor: Any) -> None:
        learner = actor.stage.learner
        usual = learner.learn

        def learn(*args: Any) -> Any:
            time.sleep(0.2)
            return usual(*args)

        learner.learn = learn

    # a narrow window: few batches of the epoch are in flight, and fast, when stage 1 gets slow
    free = dataclasses.replace(config, cuts=None, stages=2, rebalance=True, chunk=1, window=1)
    seen = RecordingCallback(once("train 0", lambda: call_actor("stage-1", slow_down)))
    result = train_on_ray(free, seen)
    assert_same(result, undisturbed)
    (moved,) = events(result.run_dir, "rebalanced")[:1]
    cuts = [record.cuts for record in result.metrics]
    assert cuts[0] < cuts[1] == moved["cuts"]
    assert any("moving the boundaries" in line for line in seen.lines)
