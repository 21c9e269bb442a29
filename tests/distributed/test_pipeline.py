"""The pipeline of real actors: what is in flight, and what becomes of errors and deaths."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, ObjectLostError, RayError, RayTaskError
from rayff.distributed.training import open_pipeline, train

from rayff.config.errors import TrainingDiverged, UserError
from rayff.config.train_config import TrainConfig
from rayff.distributed.failures import StageFailedError
from rayff.distributed.pipeline import RayPipeline
from rayff.distributed.transport import Transport
from rayff.engine.commands import Command, Snapshot, Train
from rayff.engine.loop import Loop
from rayff.engine.preparation import Prepared, prepare
from rayff.engine.stop import StopRequest
from rayff.runs.checkpoint_manager import RunRecorder
from tests.helpers.ray_instance import local_ray
from tests.helpers.tiny_task import write_tiny_task

pytestmark = pytest.mark.ray


def pids_of(pipeline: RayPipeline) -> list[int]:
    return ray.get([a.__ray_call__.remote(lambda actor: os.getpid()) for a in pipeline.actors])


def gone_within(seconds: float, pids: list[int]) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(psutil.pid_exists, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


class TestALossIsNamed:
    """Without Ray: what the driver makes of an error of stage 1."""

    @pytest.mark.parametrize(
        ("error", "sentence"),
        [
            (
                RayTaskError("handle", "", ObjectLostError("00", None, "")),
                "stage 0 (layers 0-1 on a) died: what it had sent on is lost with its node",
            ),
            (ActorDiedError(), "stage 1 (layers 2-3 on b) died: The actor died"),
            (ObjectLostError("00", None, ""), "stage 1 (layers 2-3 on b) died: "),
        ],
        ids=["its input", "itself", "its report"],
    )
    def test_after_the_stage_whose_process_or_node_is_gone(
        self, error: RayError, sentence: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "rayff.distributed.pipeline._failures", lambda references: [(0, error)]
        )
        names = ["layers 0-1 on a", "layers 2-3 on b"]
        pipeline = RayPipeline([[], []], names, Transport(), window=1)
        explained = pipeline._explained(error, [], 1)
        assert isinstance(explained, StageFailedError)
        assert str(explained).startswith(sentence)


class SearchCallback:
    """An callback that keeps what it is told and may act on it."""

    def __init__(self, on_result: Any = None) -> None:
        self.events: list[Any] = []
        self._act = on_result or (lambda: None)

    def on_result(self, command: Command, reports: Any) -> None:
        self.events.append(command)
        self._act()

    def on_epoch(self, record: Any) -> None:
        self.events.append(record)

    def on_checkpoint(self, path: Path) -> None:
        self.events.append(path)

    def on_warning(self, message: str) -> None:
        self.events.append(message)

    def on_restart(self, stage_names: Any, progress: Any) -> None:
        self.events.append(("restart", list(stage_names), progress))


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_task(tmp_path_factory.mktemp("task"))


@pytest.fixture
def run(task: str, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        arch="tinycnn",
        width=4,
        task=task,
        epochs=2,
        batch_size=16,
        lr=0.01,
        cuts=(2,),
        chunk=2,
        run_dir=str(tmp_path / "run"),
    )


@contextmanager
def opened(run: TrainConfig) -> Iterator[tuple[Prepared, RayPipeline]]:
    prepared = prepare(run, resume=False)
    with open_pipeline(prepared, notify=print) as (plan, pipeline):
        yield prepared.settled(plan.precision, plan.kernels), pipeline


class TestTheWindow:
    def test_bounds_what_is_in_flight(self, run: TrainConfig) -> None:
        drawn = 0

        def counted(commands: Iterator[Command]) -> Iterator[Command]:
            nonlocal drawn
            for command in commands:
                drawn += 1
                yield command

        with opened(run) as (prepared, pipeline):
            assert pipeline.window == 4, "two more than stages"
            ahead = []
            commands = list(prepared.schedule(chunk=1).commands())
            for landed, (command, _) in enumerate(pipeline.stream(counted(iter(commands)))):
                assert command is commands[landed]
                ahead.append(drawn - landed)
        assert len(ahead) == len(commands)
        assert max(ahead) == 4


class TestAtTheEnd:
    def test_no_stage_is_left(self, run: TrainConfig) -> None:
        with opened(run) as (_, pipeline):
            pids = pids_of(pipeline)
            assert len(set(pids)) == 2
        assert gone_within(10, pids)

    def test_nor_after_a_failed_start(self, run: TrainConfig, monkeypatch: Any) -> None:
        pids = []

        def fail(*args: Any) -> None:
            first_stage = args[3][0]
            pids.append(ray.get(first_stage.__ray_call__.remote(lambda actor: os.getpid())))
            raise UserError("no cuts today")

        monkeypatch.setattr("rayff.distributed.stage_group.measure", fail)
        with pytest.raises(UserError, match="no cuts today"):
            train(run, lambda prepared, plan: pytest.fail("nothing to watch"))
        assert len(pids) == 1
        assert gone_within(10, pids)
        assert not Path(run.run_dir or "").exists()


class TestErrors:
    def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(
        self, run: TrainConfig
    ) -> None:
        """Layer 2, in the second stage, is broken after the first epoch of six batches."""
        seen = SearchCallback()
        with opened(run) as (prepared, pipeline):
            prepared.directory.create(prepared.run)
            schedule = prepared.schedule(chunk=2)

            def poisoned() -> None:
                if len(seen.events) == 5:  # 3 chunks of training, 1 of each evaluation
                    ray.get(pipeline.actors[1].__ray_call__.remote(break_layer))

            seen._act = poisoned
            with RunRecorder(prepared, seen) as recorder:
                loop = Loop(
                    prepared=prepared,
                    schedule=schedule,
                    cuts=(2,),
                    callback=seen,
                    recorder=recorder,
                )
                with pytest.raises(TrainingDiverged) as caught:
                    loop.train(pipeline, StopRequest())
        assert caught.value.layer_index == 2
        assert 6 <= caught.value.step < 12
        assert f"layer 2 became nan at step {caught.value.step}" in str(caught.value)
        last = prepared.checkpoints.read_latest()
        assert last is not None
        assert last.step == 6

    def test_a_stage_that_is_killed_is_named(self, run: TrainConfig) -> None:
        with opened(run) as (prepared, pipeline):
            pids = pids_of(pipeline)
            stream = pipeline.stream(prepared.schedule(chunk=1).commands())
            next(stream)
            os.kill(pids[1], signal.SIGKILL)
            start = time.monotonic()
            with pytest.raises(StageFailedError, match=r"stage 1 \(layers 2-3\) died"):
                list(stream)
            assert time.monotonic() - start < 10
        assert gone_within(10, pids)


def break_layer(actor: Any) -> None:
    with torch.no_grad():
        actor.stage.learner.chain.cwconvs()[0].weight.fill_(float("nan"))


class TestAPlanTheClusterCannotHold:
    def test_is_refused_at_once(self, run: TrainConfig) -> None:
        wide = TrainConfig(**{**run.to_dict(), "cpus_per_stage": 1.5})
        start = time.monotonic()
        with pytest.raises(UserError, match="2 actors of 0 GPUs and 1.5 CPUs each are wanted"):
            train(wide, lambda prepared, plan: pytest.fail("nothing to watch"))
        assert time.monotonic() - start < 5
        assert not Path(run.run_dir or "").exists()

    def test_more_gpus_than_there_are(self, run: TrainConfig) -> None:
        gpus = TrainConfig(**{**run.to_dict(), "gpus_per_stage": 1.0})
        with pytest.raises(UserError, match="2 actors of 1 GPUs"):
            train(gpus, lambda prepared, plan: pytest.fail("nothing to watch"))


def test_the_messages_are_the_commands_in_order(run: TrainConfig) -> None:
    with opened(run) as (prepared, pipeline):
        results = list(pipeline.stream(prepared.schedule(chunk=4).commands()))
    kinds = [type(command).__name__ for command, _ in results]
    assert kinds == ["Train", "Train", "Evaluate", "Evaluate", "Snapshot"] * 2
    for command, reports in results:
        assert len(reports) == 2
        if isinstance(command, Snapshot):
            assert [sorted(report.states) for report in reports] == [[0, 1], [2, 3]]
        if isinstance(command, Train):
            assert all(len(report.loss_sums) == 2 for report in reports)
