"""A training run on a cluster, from its specification to its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayff.cluster.actor import remote_stage
from rayff.cluster.group import connect, disconnect
from rayff.cluster.pipeline import RayPipeline, wait_for
from rayff.cluster.placement import nodes, num_actors, reserve, stage_resources
from rayff.cluster.planning import measure, summing_backend
from rayff.cluster.session import ray_session
from rayff.cluster.transport import Transport, make_transport
from rayff.learning.precision import DTYPES
from rayff.partition.plan import Plan, StageResources, default_chunk, make_plan
from rayff.spec import RunSpec
from rayff.training.loop import Loop, Observer
from rayff.training.preparation import Prepared, prepare
from rayff.training.records import EpochRecord
from rayff.training.replicas import Replica
from rayff.training.stage import StageSpec
from rayff.training.stop import StopRequest

Observe = Callable[[Prepared, Plan], AbstractContextManager[Observer]]
"""Makes who watches a run, once its plan is known."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training came to."""

    run_dir: Path
    records: list[EpochRecord]
    """One an epoch, those before a resumption included."""
    stopped_by: int | None
    """Number of the signal that stopped it early, or None."""


def train(
    run: RunSpec,
    observe: Observe,
    *,
    resume: bool = False,
    notify: Callable[[str], None] = lambda message: None,
) -> TrainResult:
    """Train a network as a pipeline of actors.

    Args:
        run: what to train, on what and how.
        observe: makes who watches.
        resume: go on from the last checkpoint of the run directory.
        notify: is told, in a sentence, what is waited for.

    Raises:
        UserError: a mistake in the run or its data, or a cluster that cannot hold the plan.
        StageLostError: a stage died.
    """
    prepared = prepare(run, resume=resume)
    with ray_session(), open_pipeline(prepared, notify) as (plan, pipeline):
        prepared = prepared.settled(plan.precision, plan.kernels)
        chunk = prepared.run.chunk or default_chunk(
            plan,
            batch_size=prepared.recipe.batch_size,
            bytes_per_element=DTYPES[plan.precision].itemsize,
        )
        schedule = prepared.schedule(chunk)
        prepared.directory.create(prepared.run)
        with (
            observe(prepared, plan) as observer,
            StopRequest(
                lambda name: observer.on_warning(
                    f"{name}: stopping behind the chunks in flight, with a checkpoint "
                    "(again to stop at once, without one)"
                )
            ) as stop,
        ):
            loop = Loop(prepared=prepared, schedule=schedule, cuts=plan.cuts, observer=observer)
            records = loop.train(pipeline, stop)
    return TrainResult(run_dir=prepared.directory.path, records=records, stopped_by=stop.signum)


@contextmanager
def open_pipeline(
    prepared: Prepared, notify: Callable[[str], None]
) -> Iterator[tuple[Plan, RayPipeline]]:
    """Start the actors, find the plan, and give each actor its layers.

    The actors start before the plan is known: the first times the layers, on the device where
    they will run. Whatever was started is gone at the end, also after a failed start.
    """
    run, network = prepared.run, prepared.architecture
    there = nodes()
    count = num_actors(run, there, len(network))
    each = stage_resources(run, there, count)
    transport = make_transport(run.transport)
    names = [f"{prepared.directory.path.name}:{name}" for name in actor_names(run, count)]
    with reserve(each, count, notify) as group:
        actors = start_actors(group, each, names, transport)
        try:
            transport.connect(actors)
            measured = measure(run, network, each, actors, notify)
            plan = make_plan(run, network, each, measured, count)
            for actor in actors[plan.num_actors :]:  # they would make nothing faster
                ray.kill(actor)
            stages = plan.by_stage(actors)
            replicated = [stage for stage in stages if len(stage) > 1]
            for stage in replicated:
                connect(stage, summing_backend(each))
            _set_up(prepared, plan, stages)
            window = run.window or plan.num_stages + 2
            yield plan, RayPipeline(stages, plan.stage_names, transport, window)
            for stage in replicated:
                disconnect(stage)
        finally:
            for actor in actors:
                ray.kill(actor)


def actor_names(run: RunSpec, count: int) -> list[str]:
    """Return names that tell what an actor is, as far as it is known before the plan."""
    if run.replicas == "auto":
        return [f"actor-{index}" for index in range(count)]
    return [
        f"stage-{stage}" if replicas == 1 else f"stage-{stage}-replica-{index}"
        for stage, replicas in enumerate(run.replica_counts or (1,) * count)
        for index in range(replicas)
    ]


def start_actors(
    group: PlacementGroup, each: StageResources, names: Sequence[str], transport: Transport
) -> list[ActorHandle[Any]]:
    """Start one actor in each bundle of the group."""
    device = "cuda" if each.gpus else "cpu"
    return [
        remote_stage(
            transport.actor_options,
            name=name,
            num_cpus=each.cpus,
            num_gpus=each.gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=index
            ),
        ).remote(each.threads, device)
        for index, name in enumerate(names)
    ]


def _set_up(prepared: Prepared, plan: Plan, stages: list[list[ActorHandle[Any]]]) -> None:
    """Give each stage its slice, the first one the data too, and the layers of a checkpoint."""
    states = {} if prepared.checkpoint is None else prepared.checkpoint.states
    data = ray.put(prepared.splits)
    calls = []
    parts = plan.architecture.stages(plan.cuts)
    rest = iter(plan.kernels)
    for stage, part in zip(stages, parts, strict=True):
        kernels = tuple(next(rest) for _ in part.layers)
        own = {layer.index: states[layer.index] for layer in part.layers} if states else None
        for index, actor in enumerate(stage):
            spec = StageSpec(
                architecture=part,
                is_last=stage is stages[-1],
                recipe=prepared.recipe,
                seed=prepared.run.seed,
                precision=plan.precision,
                rule=prepared.run.rule,
                kernels=kernels,
                replica=Replica(index=index, count=len(stage)),
            )
            calls.append(actor.set_up.remote(spec, data if stage is stages[0] else None, own))
    wait_for(calls, "was set up")
