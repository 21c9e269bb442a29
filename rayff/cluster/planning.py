"""Finding the plan: a short timing on actors, then the pure function."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from rayff.cluster.actor import remote_stage
from rayff.cluster.group import time_summing
from rayff.cluster.pipeline import wait_for
from rayff.cluster.placement import nodes, num_actors, stage_resources
from rayff.cluster.session import ray_session
from rayff.data.tasks import TASKS, load_task, task_recipe
from rayff.partition.cuts import Costs
from rayff.partition.plan import Plan, StageResources, make_plan
from rayff.partition.profile import SummingTime, costs
from rayff.spec import Architecture, Recipe, RunSpec, architecture
from rayff.training.preparation import check_plan_wishes
from rayff.training.stage import DTYPES

ASSUMED_SUMMING = {
    "gloo": SummingTime(call_s=3e-4, byte_s=1e-9),  # 1 GB/s over a network
    "nccl": SummingTime(call_s=3e-5, byte_s=1e-11),  # 100 GB/s between GPUs
}
"""Where no actors are there to time it."""


def summing_backend(each: StageResources) -> str:
    """Return what sums gradients: nccl, which wants a whole GPU for each replica, or gloo."""
    return "nccl" if each.gpus >= 1 else "gloo"


def measure_costs(
    run: RunSpec,
    network: Architecture,
    each: StageResources,
    actors: Sequence[ActorHandle[Any]],
) -> Costs:
    """Time the layers on the first of the actors, and the summing of gradients among them.

    Args:
        run: with its recipe written out.
        network: all layers.
        each: resources of each actor.
        actors: of the run; a single one cannot sum, and a usual speed is assumed.
    """
    recipe = run.recipe({})
    ((times, seconds_per_byte),) = wait_for(
        [actors[0].profile.remote(network, recipe, run.precision)], "timed the layers"
    )
    replicas = len(actors) if run.replicas == "auto" else max(run.replica_counts or (1,))
    backend = summing_backend(each)
    return costs(
        network,
        times,
        batch_size=recipe.batch_size,
        bytes_per_element=DTYPES[run.precision].itemsize,
        seconds_per_byte=seconds_per_byte,
        summing=(
            time_summing(actors[:replicas], backend)
            if min(replicas, len(actors)) > 1
            else ASSUMED_SUMMING[backend]
        ),
    )


def plan_run(run: RunSpec) -> dict[str, Any]:
    """Return the plan that a run would have, as plain data.

    The cluster need not hold all its stages: one is enough to time the layers.

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
        actor = remote_stage({}, num_cpus=each.cpus, num_gpus=each.gpus).remote(
            each.threads, "cuda" if each.gpus else "cpu"
        )
        try:
            measured = measure_costs(run, network, each, [actor])
        finally:
            ray.kill(actor)
    plan = make_plan(run, network, each, measured, count)
    return _facts(plan, recipe, DTYPES[run.precision].itemsize)


def _network(run: RunSpec) -> Architecture:
    """Return the run's network; only a folder of images has to be read for it."""
    if run.task in TASKS:
        classes, channels = TASKS[run.task].num_classes, TASKS[run.task].image_channels
    else:
        data = load_task(run.task, data_dir=Path(run.data_dir) if run.data_dir else None)
        classes, channels = data.num_classes, data.image_channels
    return architecture(run.arch, num_classes=classes, image_channels=channels, width=run.width)


def _facts(plan: Plan, recipe: Recipe, bytes_per_element: int) -> dict[str, Any]:
    seconds = plan.stages_s
    onward = [
        plan.architecture.crossing(cut) * recipe.batch_size * bytes_per_element
        for cut in plan.cuts
    ]
    return {
        "architecture": plan.architecture.name,
        "batch_size": recipe.batch_size,
        "each": str(plan.resources),
        "cuts": list(plan.cuts),
        "replicas": list(plan.replicas),
        "speedup": plan.speedup,
        "layer_seconds": [
            images_s + step_s
            for images_s, step_s in zip(plan.costs.layer_s, plan.costs.step_s, strict=True)
        ],
        "summing_bytes_per_s": round(1 / ASSUMED_SUMMING[summing_backend(plan.resources)].byte_s),
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
