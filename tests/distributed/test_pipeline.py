"""The pipeline of actors and replicas: what is in flight, and which error a failure becomes."""

import dataclasses
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, ObjectLostError, RayError, RayTaskError

from rayff import TrainConfig
from rayff.config.errors import RunError, TrainingDiverged, UserError
from rayff.config.kernels import Kernels
from rayff.distributed import stage_group
from rayff.distributed.failures import StageFailedError
from rayff.distributed.pipeline import RayPipeline
from rayff.distributed.reading import hand_over
from rayff.distributed.stage_group import actor_names, open_stage_group
from rayff.distributed.transport import Transport
from rayff.engine.commands import Command, Snapshot, Train
from rayff.engine.preparation import prepare
from rayff.partition.boundaries import Costs
from rayff.partition.plan import StageResources, make_plan
from tests.helpers.ray_instance import local_ray
from tests.helpers.runs import RecordingCallback, train_on_ray
from tests.helpers.stages import OPTIONS, call_actor, kill_actor, once, pid_of


class TestAFailureIsNamed:
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


def test_an_actor_alone_in_its_stage_is_named_after_the_stage() -> None:
    assert actor_names(TrainConfig(), 2) == ["stage-0", "stage-1"]
    assert actor_names(TrainConfig(replicas="1,2,1"), 4) == [
        *("stage-0", "stage-1-replica-0", "stage-1-replica-1", "stage-2"),
    ]
    assert actor_names(TrainConfig(replicas="auto"), 2) == ["actor-0", "actor-1"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with local_ray(num_cpus=5):
        yield


@pytest.fixture
def config(tiny_task: str, tmp_path: Path) -> TrainConfig:
    """Two stages, the second one of two replicas."""
    plan = {"cuts": (2,), "replicas": "1,2"}
    return TrainConfig(**{**OPTIONS, **plan}, task=tiny_task, run_dir=str(tmp_path / "run"))


def gone_within(seconds: float, pids: list[int]) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(psutil.pid_exists, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_stream_keeps_the_window_and_the_order_and_leaves_no_stage(config: TrainConfig) -> None:
    prepared = prepare(dataclasses.replace(config, replicas=None, epochs=2), resume=False)
    run = prepared.resolve("fp32", (Kernels(),) * 4)
    each, costs = StageResources(cpus=1, gpus=0), Costs(layer_s=[1.0] * 4, boundary_s=[0.0] * 4)
    plan = make_plan(run.config, run.architecture, each, costs, 2, run.recipe.batch_size)
    drawn: list[Command] = []
    kinds: list[str] = []
    ahead: list[int] = []

    def counted() -> Iterator[Command]:
        for command in run.schedule(chunk=2).commands():
            drawn.append(command)
            yield command

    with open_stage_group(prepared, each, 2, print) as group:
        pids = [pid_of(name) for name in ("stage-0", "stage-1")]
        for command, reports in group.set_up(
            run, plan, hand_over(run.data), None, window=4
        ).stream(counted()):
            assert command is drawn[len(kinds)]
            assert len(reports) == 2
            if isinstance(command, Snapshot):
                assert [sorted(report.states) for report in reports] == [[0, 1], [2, 3]]
            if isinstance(command, Train):
                assert all(len(report.loss_sums) == 2 for report in reports)
            ahead.append(len(drawn) - len(kinds))
            kinds.append(type(command).__name__)
    assert kinds == [*["Train"] * 3, "Evaluate", "Evaluate", "Snapshot"] * 2
    assert max(ahead) == 4
    assert len(set(pids)) == 2
    assert gone_within(10, pids)


def ask(names: list[str], question: Any) -> list[Any]:
    """Ask all actors at once: a sum over replicas waits for each of them."""
    actors = [ray.get_actor(f"run:{name}") for name in names]
    return ray.get([actor.__ray_call__.remote(question) for actor in actors])


def digest(actor: Any) -> str:
    whole = hashlib.sha256()
    for _, state in sorted(actor.stage.learner.states().items()):
        for _, tensor in sorted(state.items()):
            whole.update(tensor.detach().numpy().tobytes())
    return whole.hexdigest()


def sum_in_own_order(actor: Any) -> tuple[list[float], bool]:
    """Sum a gradient that lies in another order of memory on the first replica."""
    weight = torch.zeros(2, 3, 2, 2)
    gradient = torch.arange(24.0).view(2, 3, 2, 2)
    if actor.stage.spec.replica.index == 0:
        gradient = gradient.to(memory_format=torch.channels_last)
    weight.grad = gradient
    actor.group.start(weight)()
    return weight.grad.flatten().tolist(), weight.grad.stride() == weight.stride()


def break_layer(actor: Any) -> None:
    with torch.no_grad():
        actor.stage.learner.chain.parts()[0].weight.fill_(float("nan"))


def change_slightly(actor: Any) -> None:
    with torch.no_grad():
        actor.stage.learner.chain.parts()[1].weight.mul_(1 + 1e-6)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
class TestReplicas:
    def test_have_names_of_their_own_and_the_same_bits(self, config: TrainConfig) -> None:
        """Of 96 images in batches of 19 the last batch has one: a replica has none of it."""
        stages = [[f"stage-{stage}-replica-{i}" for i in range(2 + stage)] for stage in (0, 1)]
        names = [name for stage in stages for name in stage]

        def look() -> None:
            assert sorted(ray.util.list_named_actors()) == [f"run:{name}" for name in names]
            for stage in stages:
                assert len(set(ask(stage, digest))) == 1
                total = [len(stage) * number for number in range(24)]
                assert ask(stage, sum_in_own_order) == [(total, True)] * len(stage)

        seen = RecordingCallback(once("epoch 1", look))
        options = {"replicas": "2,3", "epochs": 1, "batch_size": 19}
        result = train_on_ray(dataclasses.replace(config, **options), seen)
        assert "epoch 1" in seen.lines
        assert result.metrics[0].step == 6
        assert len(result.metrics[0].stage_busy) == 2

    def test_may_be_grouped_by_a_timing(self, config: TrainConfig) -> None:
        options = {"replicas": "auto", "cuts": None, "stages": 3, "epochs": 1}
        names: list[str] = []
        seen = RecordingCallback(
            once("train 0", lambda: names.extend(ray.util.list_named_actors()))
        )
        result = train_on_ray(dataclasses.replace(config, **options), seen)
        assert result.complete
        assert set(names) <= {"run:actor-0", "run:actor-1", "run:actor-2"}
        assert len(result.metrics[0].stage_busy) <= len(names)

    def test_that_no_longer_agree_are_no_checkpoint(self, config: TrainConfig) -> None:
        def lead_astray() -> None:
            call_actor("stage-1-replica-1", change_slightly)

        with pytest.raises(RunError, match="replicas of layer 3 no longer have the same"):
            train_on_ray(config, RecordingCallback(once("train 0", lead_astray)))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
class TestErrors:
    def test_a_loss_that_one_replica_alone_finds_broken_stops_the_run_and_keeps_the_checkpoint(
        self, config: TrainConfig
    ) -> None:
        """Layer 2 is broken when the first epoch of six batches has been evaluated.

        A batch later the other replica's layers are broken too, by the sum of the gradients.
        """

        def break_one() -> None:
            call_actor("stage-1-replica-1", break_layer)

        each = dataclasses.replace(config, chunk=1)
        with pytest.raises(TrainingDiverged) as caught:
            train_on_ray(each, RecordingCallback(once("test", break_one)))
        assert caught.value.layer_index == 2
        assert 6 <= caught.value.step < 12
        assert f"layer 2 became nan at step {caught.value.step}" in str(caught.value)
        last = prepare(config, resume=True).checkpoint
        assert last is not None
        assert last.step == 6

    def test_a_replica_that_is_killed_is_named(self, config: TrainConfig) -> None:
        pids: list[int] = []

        def kill() -> None:
            pids.extend(ask(["stage-0", "stage-1-replica-0"], lambda actor: os.getpid()))
            kill_actor("stage-1-replica-1")

        none = dataclasses.replace(config, max_failures=0)
        with pytest.raises(RunError, match=r"stage 1 \(layers 2-3 x2\), replica 1, died: "):
            train_on_ray(none, RecordingCallback(once("train 0", kill)))
        assert len(pids) == 2
        assert gone_within(10, pids)

    def test_a_mistake_in_the_code_is_shown_where_it_happened(self, config: TrainConfig) -> None:
        def remove() -> None:
            call_actor("stage-1-replica-1", lambda actor: actor.stage.learner.optimizers.clear())

        with pytest.raises(RayTaskError, match=r"layers 2-3, replica 1 of 2"):
            train_on_ray(config, RecordingCallback(once("train 0", remove)))

    def test_a_start_that_fails_leaves_no_actor_and_no_file(
        self, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pids: list[int] = []

        def fail(*args: Any) -> None:
            pids.append(pid_of("stage-0"))
            raise UserError("no boundaries today")

        monkeypatch.setattr(stage_group, "measure_costs", fail)
        with pytest.raises(UserError, match="no boundaries today"):
            train_on_ray(config)
        assert len(pids) == 1
        assert gone_within(10, pids)
        assert not Path(config.run_dir or "").exists()

    @pytest.mark.parametrize(
        ("plan", "sentence"),
        [
            ({"transport": "gloo"}, "--transport object-store"),
            ({"replicas": "20", "cuts": None}, "20 actors cannot share a batch of 16"),
            ({"replicas": "3,3"}, "6 actors of 0 GPUs and 1 CPUs each are needed"),
            ({"gpus_per_stage": 1.0}, "3 actors of 1 GPUs"),
        ],
        ids=str,
    )
    def test_a_plan_that_cannot_be_is_refused_at_once(
        self, plan: dict[str, Any], sentence: str, config: TrainConfig
    ) -> None:
        start = time.monotonic()
        with pytest.raises(UserError, match=sentence):
            train_on_ray(dataclasses.replace(config, **plan))
        assert time.monotonic() - start < 5
        assert not Path(config.run_dir or "").exists()
