"""Planning: the costs of the layers, timed on actors, and the plan that suits them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from rayff.config.activity import activity
from rayff.config.kernels import Kernels
from rayff.config.text import plural
from rayff.config.train_config import Precision, TrainConfig
from rayff.data.loading import data_options, load_task
from rayff.data.tasks import TASKS, TaskData
from rayff.distributed.actor_group import Capabilities
from rayff.distributed.all_reduce import time_all_reduce
from rayff.distributed.failures import wait_for
from rayff.distributed.placement import capacity, nodes, num_actors, stage_resources
from rayff.distributed.session import ray_session
from rayff.distributed.stage_actor import remote_stage
from rayff.engine.preparation import assemble
from rayff.engine.resolution import resolve_run, warn_of_missing_kernels
from rayff.engine.run import PreparedRun, Run
from rayff.kernels.precision import DTYPES
from rayff.models.architecture import Architecture
from rayff.partition.boundaries import Costs
from rayff.partition.plan import Plan, StageResources, make_plan
from rayff.partition.profile import AllReduceTime, costs
from rayff.runs.run_directory import RunDirectory

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
    prepared = _without_data(config)
    network = prepared.architecture
    with ray_session():
        there = nodes()
        count = num_actors(config, there, len(network))
        if config.cpus_per_stage is None:
            total = sum(node.cpus for node in there)
            config = dataclasses.replace(config, cpus_per_stage=max(1.0, total // count))
        resources = stage_resources(config, there, 1)
        held = capacity(there, resources)
        actors = [remote_stage(resources) for _ in range(min(count, held))]
        try:
            with activity(f"starting {plural(len(actors), 'stage')}"):
                wait_for([actor.__ray_ready__.remote() for actor in actors], "was started")
            common = Capabilities.common(ask_capabilities(prepared, actors))
            run = resolve_run(
                prepared,
                common.precision,
                common.device_class,
                lambda precision: autotune_on(actors[0], prepared, precision),
            )
            warn_of_missing_kernels(run, common.missing, warn, on_gpu=resources.gpus > 0)
            measured = measure_costs(run, resources, actors)
        finally:
            for actor in actors:
                ray.kill(actor)
    batch_size = run.recipe.batch_size
    return _facts(run, make_plan(config, network, resources, measured, count, batch_size))


def _without_data(config: TrainConfig) -> PreparedRun:
    """Return a run as far as a plan needs it; only a folder of images is read for it."""
    if config.task in TASKS:
        task = TASKS.load(config.task)
        size = data_options(config).size
        data = TaskData.empty(task.name, task.class_names, task.image_channels, size)
    else:
        data = load_task(data_options(config))
    return assemble(config, data, RunDirectory(Path()), check_size=False)


def _memory_bytes(part: Architecture, run: Run) -> int:
    """Return about what a stage needs beside its process: its layers and one layer's batch.

    A layer has its weights, gradient and two moments of the optimizer in float32; of a batch its
    input, its product and what it hands on.
    """
    element = DTYPES[run.resolved.precision].itemsize
    batch = max(
        math.prod(layer.in_shape) + math.prod(layer.out_shape) + math.prod(layer.feature_shape)
        for layer in part.layers
    )
    return 4 * 4 * part.num_weights + run.recipe.batch_size * batch * element


def _facts(run: Run, plan: Plan) -> dict[str, Any]:
    seconds = plan.stages_s
    batch_bytes = run.recipe.batch_size * DTYPES[run.resolved.precision].itemsize
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
                "memory_bytes": _memory_bytes(part, run),
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
