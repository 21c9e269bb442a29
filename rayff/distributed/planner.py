"""CheckResult the plan: a short timing on actors, then the pure function."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from rayff.config.recipe import Recipe
from rayff.config.train_config import TrainConfig
from rayff.data.tasks import TASKS, load_task, task_recipe
from rayff.distributed.failures import wait_for
from rayff.distributed.placement import nodes, num_actors, room, stage_resources
from rayff.distributed.replica_group import time_all_reduce
from rayff.distributed.session import ray_session
from rayff.distributed.stage_actor import Profile, remote_stage
from rayff.engine.preparation import check_plan_wishes
from rayff.kernels.precision import DTYPES
from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture
from rayff.partition.plan import Measured, Plan, StageResources, make_plan
from rayff.partition.profile import AllReduceTime, costs

ASSUMED_ALL_REDUCE = {
    "gloo": AllReduceTime(call_s=3e-4, byte_s=1e-9),  # 1 GB/s over a network
    "nccl": AllReduceTime(call_s=3e-5, byte_s=1e-11),  # 100 GB/s between GPUs
}
"""Where no actors are there to time it."""


PATIENCE_S = 3.0
"""After which a user is told what takes so long."""
_CPU_REMEDY = (
    "with a C++ compiler, such as g++, and with a RAYFF_CACHE_DIR that can be written and from "
    "which programs may run"
)
_GPU_REMEDY = "with Triton (pip install triton), a C compiler and Python's headers"


def all_reduce_backend(each: StageResources) -> str:
    """Return what sums gradients: nccl, which wants a whole GPU for each replica, or gloo."""
    return "nccl" if each.gpus >= 1 else "gloo"


def least_able(profiles: Sequence[Profile]) -> Profile:
    """Return what the actor found that can do least: the others can compute the same way."""
    return min(profiles, key=lambda found: (found.missing is None, found.tiles))


def measure(
    run: TrainConfig,
    network: Architecture,
    each: StageResources,
    actors: Sequence[ActorHandle[Any]],
    notify: Callable[[str], None],
) -> Measured:
    """Time the layers on all actors at once, and the all_reduce of gradients among them.

    Together, because in training they share caches and memory too. What the least able one finds
    counts, since all compute with the same kernels.

    Args:
        run: with its recipe written out.
        network: all layers.
        each: resources of each actor.
        actors: of the run; a single one cannot sum, and a usual speed is assumed.
        notify: is told what takes long or is missing.
    """
    calls = [actor.profile.remote(run, network, len(actors) - 1) for actor in actors]
    if not ray.wait(calls[:1], timeout=PATIENCE_S)[0]:
        notify("waiting for the actors, which time the layers where this machine has not yet")
    profiles = wait_for(calls, "timed the layers")
    profile = least_able(profiles)
    if profile.missing is not None:
        remedy = _GPU_REMEDY if each.gpus else _CPU_REMEDY
        notify(
            f"the fast rule goes without its compiled kernels: {profile.missing}; it is faster "
            f"{remedy}"
        )
    replicas = len(actors) if run.replicas == "auto" else max(run.replica_counts or (1,))
    backend = all_reduce_backend(each)
    measured = costs(
        network,
        profile.times,
        batch_size=run.recipe({}).batch_size,
        bytes_per_element=DTYPES[profile.precision].itemsize,
        seconds_per_byte=profile.seconds_per_byte,
        all_reduce=(
            time_all_reduce(actors[:replicas], backend)
            if min(replicas, len(actors)) > 1
            else ASSUMED_ALL_REDUCE[backend]
        ),
    )
    return Measured(
        costs=measured,
        precision=profile.precision,
        kernels=tuple(time.kernels for time in profile.times),
    )


def plan_run(run: TrainConfig, notify: Callable[[str], None]) -> dict[str, Any]:
    """Return the plan that a run would have, as plain data.

    The cluster need not hold all its stages: as many as it holds time the layers.

    Raises:
        UserError: as in training.
    """
    network = _network(run)
    run = run.resolved(task_recipe(run.task))
    recipe = run.recipe({})
    check_plan_wishes(run, len(network), recipe.batch_size)
    with ray_session():
        there = nodes()
        count = num_actors(run, there, len(network))
        if run.cpus_per_stage is None:
            total = sum(node.cpus for node in there)
            run = dataclasses.replace(run, cpus_per_stage=max(1.0, total // count))
        each = stage_resources(run, there, 1)
        actors = [
            remote_stage({}, num_cpus=each.cpus, num_gpus=each.gpus).remote(
                each.threads, "cuda" if each.gpus else "cpu"
            )
            for _ in range(min(count, room(there, each)))
        ]
        try:
            measured = measure(run, network, each, actors, notify)
        finally:
            for actor in actors:
                ray.kill(actor)
    return _facts(make_plan(run, network, each, measured, count), recipe)


def _network(run: TrainConfig) -> Architecture:
    """Return the run's network; only a folder of images has to be read for it."""
    if run.task in TASKS:
        classes, channels = TASKS[run.task].num_classes, TASKS[run.task].image_channels
    else:
        data = load_task(run.task, data_dir=Path(run.data_dir) if run.data_dir else None)
        classes, channels = data.num_classes, data.image_channels
    return architecture(run.arch, num_classes=classes, image_channels=channels, width=run.width)


def _facts(plan: Plan, recipe: Recipe) -> dict[str, Any]:
    seconds, bytes_per_element = plan.stages_s, DTYPES[plan.precision].itemsize
    onward = [
        plan.architecture.boundary_elements(cut) * recipe.batch_size * bytes_per_element
        for cut in plan.cuts
    ]
    return {
        "architecture": plan.architecture.name,
        "batch_size": recipe.batch_size,
        "precision": plan.precision,
        "kernels": list(map(str, plan.kernels)),
        "each": str(plan.resources),
        "cuts": list(plan.cuts),
        "replicas": list(plan.replicas),
        "speedup": plan.speedup,
        "layer_seconds": [
            images_s + step_s
            for images_s, step_s in zip(plan.costs.layer_s, plan.costs.step_s, strict=True)
        ],
        "summing_bytes_per_s": round(
            1 / ASSUMED_ALL_REDUCE[all_reduce_backend(plan.resources)].byte_s
        ),
        "stages": [
            {
                "layers": layers,
                "replicas": replicas,
                "seconds": stage_s,
                "share": stage_s / max(seconds),
                "bytes_onward": bytes_onward,
            }
            for layers, replicas, stage_s, bytes_onward in zip(
                plan.layer_ranges, plan.replicas, seconds, [*onward, 0], strict=True
            )
        ],
    }
