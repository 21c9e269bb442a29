"""A training run on a cluster, from its specification to its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayff.cluster.actor import remote_stage
from rayff.cluster.pipeline import RayPipeline, wait_for
from rayff.cluster.placement import default_num_stages, nodes, reserve, stage_resources
from rayff.cluster.planning import make_plan
from rayff.cluster.session import ray_session
from rayff.cluster.transport import Transport, make_transport
from rayff.partition.plan import Plan, StageResources, default_chunk
from rayff.spec import RunSpec
from rayff.training.loop import Loop, Observer
from rayff.training.preparation import Prepared, prepare
from rayff.training.records import EpochRecord
from rayff.training.stage import DTYPES, StageSpec
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
        chunk = prepared.run.chunk or default_chunk(
            plan,
            batch_size=prepared.recipe.batch_size,
            bytes_per_element=DTYPES[prepared.run.precision].itemsize,
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
    """Start the stages, find the cuts, and give each stage its layers.

    The stages start before the cuts are known: the first times the layers, on the device where
    they will run. Whatever was started is gone at the end, also after a failed start.
    """
    run = prepared.run
    there = nodes()
    num_stages = default_num_stages(run, there, len(prepared.architecture))
    each = stage_resources(run, there, num_stages)
    transport = make_transport(run.transport)
    with reserve(each, num_stages, notify) as group:
        actors = start_stages(group, each, num_stages, transport, prepared.directory.path.name)
        try:
            transport.connect(actors)
            plan = make_plan(
                run, prepared.architecture, prepared.recipe, each, num_stages, actors[0]
            )
            _set_up(prepared, plan, actors)
            window = run.window or num_stages + 2
            yield plan, RayPipeline(actors, plan.stage_names, transport, window)
        finally:
            for actor in actors:
                ray.kill(actor)


def start_stages(
    group: PlacementGroup,
    each: StageResources,
    num_stages: int,
    transport: Transport,
    name: str,
) -> list[ActorHandle[Any]]:
    """Start one actor in each bundle of the group."""
    device = "cuda" if each.gpus else "cpu"
    return [
        remote_stage(
            transport.actor_options,
            name=f"{name}:stage-{position}",
            num_cpus=each.cpus,
            num_gpus=each.gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=position
            ),
        ).remote(each.threads, device)
        for position in range(num_stages)
    ]


def _set_up(prepared: Prepared, plan: Plan, actors: list[ActorHandle[Any]]) -> None:
    """Give each stage its slice, the first one the data too, and the layers of a checkpoint."""
    states = {} if prepared.checkpoint is None else prepared.checkpoint.states
    calls = []
    for actor, part in zip(actors, plan.architecture.stages(plan.cuts), strict=True):
        own = {layer.index: states[layer.index] for layer in part.layers} if states else None
        spec = StageSpec(
            architecture=part,
            is_last=actor is actors[-1],
            recipe=prepared.recipe,
            seed=prepared.run.seed,
            precision=prepared.run.precision,
        )
        data = prepared.splits if actor is actors[0] else None
        calls.append(actor.set_up.remote(spec, data, own))
    wait_for(calls, "was set up")
