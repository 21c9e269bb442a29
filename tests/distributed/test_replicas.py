"""Stages of several actors: their names, their bits, and what becomes of errors and deaths."""

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import RayTaskError
from rayff.distributed.training import open_pipeline, train

from rayff.config.errors import RunError, TrainingDiverged, UserError
from rayff.config.train_config import TrainConfig
from rayff.distributed.pipeline import RayPipeline, StageFailedError
from rayff.distributed.stage_group import actor_names
from rayff.engine.preparation import Prepared, prepare
from rayff.partition.plan import Plan
from tests.helpers.ray_instance import local_ray
from tests.helpers.tiny_task import write_tiny_task

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray(num_cpus=5):
        yield


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_task(tmp_path_factory.mktemp("task"))


def make_run(task: str, tmp_path: Path, **plan: Any) -> TrainConfig:
    return TrainConfig(
        arch="tinycnn",
        width=4,
        task=task,
        epochs=1,
        batch_size=19,  # of 96 images the last batch has one
        lr=0.01,
        chunk=1,
        cpus_per_stage=1,
        run_dir=str(tmp_path / "run"),
        **plan,
    )


@contextmanager
def opened(run: TrainConfig) -> Iterator[tuple[Prepared, Plan, RayPipeline]]:
    prepared = prepare(run, resume=False)
    with open_pipeline(prepared, notify=print) as (plan, pipeline):
        yield prepared, plan, pipeline


def ask(actors: list[Any], question: Any) -> list[Any]:
    return ray.get([actor.__ray_call__.remote(question) for actor in actors])


def digest(actor: Any) -> str:
    whole = hashlib.sha256()
    for layer in actor.stage.learner.chain.cwconvs():
        whole.update(layer.weight.detach().numpy().tobytes())
        for _, value in sorted(
            actor.stage.learner.optimizers[layer.spec.index].state[layer.weight].items()
        ):
            whole.update(value.numpy().tobytes())
    return whole.hexdigest()


def sum_in_own_order(actor: Any) -> tuple[list[float], bool, bool]:
    """Sum a gradient that lies in another order of memory on the first replica."""
    weight = torch.zeros(2, 3, 2, 2)
    gradient = torch.arange(24.0).view(2, 3, 2, 2)
    if actor.stage.spec.replica.index == 0:
        gradient = gradient.to(memory_format=torch.channels_last)
    actor.group.prepare([weight])
    weight.grad = gradient
    actor.group.start(weight)()
    as_weight = weight.grad.stride() == weight.stride()
    return weight.grad.flatten().tolist(), as_weight, actor.group.sums_in_memory


def break_layer(actor: Any) -> None:
    with torch.no_grad():
        actor.stage.learner.chain.cwconvs()[0].weight.fill_(float("nan"))


def lead_astray(actor: Any) -> None:
    with torch.no_grad():
        actor.stage.learner.chain.cwconvs()[1].weight.mul_(1 + 1e-6)


class TestAWholeRun:
    def test_replicas_have_the_same_bits_and_tell_what_they_are(
        self, task: str, tmp_path: Path
    ) -> None:
        with opened(make_run(task, tmp_path, replicas="2,3")) as (prepared, plan, pipeline):
            names = [f"stage-0-replica-{i}" for i in range(2)]
            names += [f"stage-1-replica-{i}" for i in range(3)]
            assert sorted(ray.util.list_named_actors()) == [f"run:{name}" for name in names]
            assert plan.replicas == (2, 3)
            images = 0
            for _, reports in pipeline.stream(prepared.schedule(chunk=1).commands()):
                assert len(reports) == 2
                images += reports[0].images
                assert reports[0].images == reports[1].images
            assert images == 96 + 20 + 30
            for stage in pipeline.stages:
                assert len(set(ask(stage, digest))) == 1
                summed = ask(stage, sum_in_own_order)
                total = [len(stage) * i for i in range(24)]
                assert summed == [(total, True, True)] * len(stage)

    def test_auto_groups_actors_and_ends_well(self, task: str, tmp_path: Path) -> None:
        run = make_run(task, tmp_path, replicas="auto", stages=3)
        with opened(run) as (prepared, plan, pipeline):
            assert 1 <= plan.num_actors == len(pipeline.actors) <= 3
            assert "run:actor-0" in ray.util.list_named_actors()
            for _, reports in pipeline.stream(prepared.schedule(chunk=2).commands()):
                assert len(reports) == plan.num_stages


class TestErrors:
    def test_a_loss_that_one_replica_alone_finds_broken_stops_the_run(
        self, task: str, tmp_path: Path
    ) -> None:
        with opened(make_run(task, tmp_path, replicas="1,2")) as (prepared, _, pipeline):
            stream = pipeline.stream(prepared.schedule(chunk=1).commands())
            next(stream)
            ask(pipeline.stages[1][1:], break_layer)
            start = time.monotonic()
            with pytest.raises(TrainingDiverged, match="became nan at step"):
                list(stream)
            assert time.monotonic() - start < 15

    def test_a_replica_that_is_killed_is_named(self, task: str, tmp_path: Path) -> None:
        with opened(make_run(task, tmp_path, replicas="1,2")) as (prepared, plan, pipeline):
            stream = pipeline.stream(prepared.schedule(chunk=1).commands())
            next(stream)
            (pid,) = ask(pipeline.stages[1][1:], lambda actor: os.getpid())
            os.kill(pid, signal.SIGKILL)
            start = time.monotonic()
            name = rf"stage 1 \({plan.stage_names[1]}\), replica 1, died"
            with pytest.raises(StageFailedError, match=name):
                list(stream)
            assert time.monotonic() - start < 15

    def test_a_mistake_in_the_code_is_shown_where_it_happened(
        self, task: str, tmp_path: Path
    ) -> None:
        with opened(make_run(task, tmp_path, cuts=(1,), replicas="1,2")) as (
            prepared,
            _,
            pipeline,
        ):
            ask(pipeline.stages[1][1:], lambda actor: actor.stage.learner.optimizers.clear())
            start = time.monotonic()
            with pytest.raises(RayTaskError, match=r"layers 1-3, replica 1 of 2"):
                list(pipeline.stream(prepared.schedule(chunk=1).commands()))
            assert time.monotonic() - start < 15

    def test_replicas_that_no_longer_agree_are_no_checkpoint(
        self, task: str, tmp_path: Path
    ) -> None:
        with opened(make_run(task, tmp_path, replicas="2")) as (prepared, _, pipeline):
            ask(pipeline.stages[0][1:], lead_astray)
            with pytest.raises(RunError, match="replicas of layer 1 no longer have the same"):
                list(pipeline.stream(prepared.schedule(chunk=9).commands()))


class TestAPlanThatCannotBe:
    @pytest.mark.parametrize(
        ("plan", "sentence"),
        [
            ({"replicas": "1,2", "transport": "gloo"}, "--transport object-store"),
            ({"replicas": "20"}, "20 actors cannot share a batch of 19"),
            ({"replicas": "3,3"}, "6 actors of 0 GPUs and 1 CPUs each are wanted"),
        ],
        ids=str,
    )
    def test_is_refused_at_once(
        self, task: str, tmp_path: Path, plan: dict[str, Any], sentence: str
    ) -> None:
        run = make_run(task, tmp_path, **plan)
        start = time.monotonic()
        with pytest.raises(UserError, match=sentence):
            train(run, lambda prepared, plan: pytest.fail("nothing to watch"))
        assert time.monotonic() - start < 5
        assert not Path(run.run_dir or "").exists()


def test_an_actor_alone_in_its_stage_is_named_after_the_stage() -> None:
    assert actor_names(TrainConfig(), 2) == ["stage-0", "stage-1"]
    assert actor_names(TrainConfig(replicas="1,2,1"), 4) == [
        *("stage-0", "stage-1-replica-0", "stage-1-replica-1", "stage-2"),
    ]
    assert actor_names(TrainConfig(replicas="auto"), 2) == ["actor-0", "actor-1"]
