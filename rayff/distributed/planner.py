"""Planning: the costs of the layers, timed on actors, and the plan that suits them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle

from rayff.config.activity import activity
from rayff.config.kernels import Kernels
from rayff.config.text import plural
from rayff.config.train_config import Precision, TrainConfig
from rayff.distributed.actor_group import Capabilities
from rayff.distributed.all_reduce import time_all_reduce
from rayff.distributed.failures import wait_for
from rayff.distributed.placement import capacity, nodes, num_actors, stage_resources
from rayff.distributed.session import ray_session
from rayff.distributed.stage_actor import remote_stage
from rayff.engine.preparation import assemble_without_data
from rayff.engine.resolution import resolve_run, warn_of_missing_kernels
from rayff.engine.run import PreparedRun, Run
from rayff.kernels.precision import DTYPES
from rayff.partition.boundaries import Costs
from rayff.partition.layer_costs import AllReduceTime, costs
from rayff.partition.plan import Plan, StageResources, make_plan, stage_memory_bytes

ASSUMED_ALL_REDUCE = {
    "gloo": AllReduceTime(call_s=3e-4, byte_s=1e-9),  # 1 GB/s over a network
    "nccl": AllReduceTime(call_s=3e-5, byte_s=1e-11),  # 100 GB/s between GPUs
}
"""Where there are no actors to time it."""


def all_reduce_backend(resources: StageResources) -> str:
    """Return what sums gradients: nccl, which needs a whole GPU for each replica, or gloo."""
    return "nccl" if resources.gpus >= 1 else "gloo"


def ask_capabilities(
    prepared: PreparedRun, actors: Sequence[ActorHandle[Any]]
) -> list[Capabilities]:
    """Return what the device of each actor can do, once it can import what the run names.

    Raises:
        UserError: a node cannot import the loss, the optimizer, an augmentation or the function
            that makes the modules.
    """
    config, source = prepared.config, prepared.architecture.source
    names = config.loss, prepared.recipe.optimizer, config.augment, source and source.function
    calls = [actor.capabilities.remote(*names) for actor in actors]
    with activity("loading kernels, which are compiled once on a machine"):
        return wait_for(calls, "described its device")


def autotune_on(
    actor: ActorHandle[Any], prepared: PreparedRun, precision: Precision
) -> tuple[Kernels, ...]:
    """Return each layer's kernels, chosen by a timing on an actor."""
    call = actor.autotune.remote(prepared.architecture, prepared.recipe.batch_size, precision)
    with activity("timing the kernels"):
        kernels: tuple[Kernels, ...] = wait_for([call], "timed the kernels")[0]
    return kernels


def measure_costs(
    run: Run,
    resources: StageResources,
    actors: Sequence[ActorHandle[Any]],
) -> Costs:
    """Time the layers on all actors at once, and the all-reduce of gradients among them.

    At once, because in training they share caches and memory too.

    Args:
        run: what is trained.
        resources: of each actor.
        actors: of the run; with a single one the all-reduce is assumed to have a usual speed.
    """
    network, resolved = run.architecture, run.resolved
    calls = [actor.profile.remote(resolved, network, len(actors) - 1) for actor in actors]
    with activity("timing the layers, once on a machine"):
        profile = wait_for(calls, "timed the layers")[0]
    config = run.config
    replicas = len(actors) if config.replicas == "auto" else max(config.replica_counts or (1,))
    backend = all_reduce_backend(resources)
    return costs(
        network,
        profile.times,
        frozen=resolved.frozen,
        batch_size=run.recipe.batch_size,
        bytes_per_element=DTYPES[resolved.precision].itemsize,
        seconds_per_byte=profile.seconds_per_byte,
        all_reduce=(
            time_all_reduce(actors[:replicas], backend)
            if min(replicas, len(actors)) > 1
            else ASSUMED_ALL_REDUCE[backend]
        ),
    )


def plan_run(config: TrainConfig, warn: Callable[[str], None]) -> dict[str, Any]:
    """Return the plan that a run would have, as plain data.

    The cluster need not hold all its stages: as many as it holds time the layers.

    Raises:
        UserError: as in training.
    """
    prepared = assemble_without_data(config)
    with ray_session(), timing_actors(config, len(prepared.architecture)) as there:
        actors, resources = there.actors, there.resources
        common = Capabilities.common(ask_capabilities(prepared, actors))
        run = resolve_run(
            prepared,
            common.precision,
            common.device_class,
            lambda precision: autotune_on(actors[0], prepared, precision),
        )
        warn_of_missing_kernels(run, common.missing, warn, on_gpu=resources.gpus > 0)
        measured = measure_costs(run, resources, actors)
    batch_size = run.recipe.batch_size
    plan = make_plan(config, run.architecture, resources, measured, there.wanted, batch_size)
    return _facts(run, plan)


@dataclass(frozen=True, kw_only=True)
class TimingActors:
    """Actors that time layers."""

    actors: list[ActorHandle[Any]]
    """As many as the cluster holds of those wanted."""
    resources: StageResources
    """Of each."""
    wanted: int
    """Number of actors that the run would have."""


@contextmanager
def timing_actors(config: TrainConfig, num_layers: int) -> Iterator[TimingActors]:
    """Start the actors that a run would have, as many as the cluster holds, and end them.

    They share its CPUs evenly, unless the run says otherwise.
    """
    there = nodes()
    count = num_actors(config, there, num_layers)
    if config.cpus_per_stage is None:
        total = sum(node.cpus for node in there)
        config = dataclasses.replace(config, cpus_per_stage=max(1.0, total // count))
    resources = stage_resources(config, there, 1)
    actors = [remote_stage(resources) for _ in range(min(count, capacity(there, resources)))]
    try:
        with activity(f"starting {plural(len(actors), 'stage')}"):
            wait_for([actor.__ray_ready__.remote() for actor in actors], "was started")
        yield TimingActors(actors=actors, resources=resources, wanted=count)
    finally:
        for actor in actors:
            ray.kill(actor)


def _facts(run: Run, plan: Plan) -> dict[str, Any]:
    seconds = plan.stages_s
    element_bytes = DTYPES[run.resolved.precision].itemsize
    batch_bytes = run.recipe.batch_size * element_bytes
    onward = [plan.architecture.boundary_elements(cut) * batch_bytes for cut in plan.cuts]
    assumed = ASSUMED_ALL_REDUCE[all_reduce_backend(plan.resources)]
    return {
        "architecture": plan.architecture.name,
        "batch_size": run.recipe.batch_size,
        "precision": run.resolved.precision,
        "rule": run.resolved.rule,
        "kernels": list(map(str, run.resolved.kernels)),
        "resources": str(plan.resources),
        "threads": plan.resources.threads,
        "cuts": list(plan.cuts),
        "replicas": list(plan.replicas),
        "speedup": plan.speedup,
        "layer_seconds": [
            images_s + step_s
            for images_s, step_s in zip(plan.costs.layer_s, plan.costs.step_s, strict=True)
        ],
        "all_reduce_bytes_per_s": round(1 / assumed.byte_s),
        "stages": [
            {
                "layers": layers,
                "replicas": replicas,
                "seconds": stage_s,
                "share": stage_s / max(seconds),
                "weights": part.num_weights,
                "memory_bytes": stage_memory_bytes(part, run.recipe.batch_size, element_bytes),
                "bytes_onward": bytes_onward,
            }
            for layers, replicas, stage_s, bytes_onward, part in zip(
                plan.layer_ranges,
                plan.replicas,
                seconds,
                [*onward, 0],
                plan.architecture.stages(plan.cuts),
                strict=True,
            )
        ],
    }
