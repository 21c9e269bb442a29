"""Finding the cuts: a short timing of the layers on an actor, then the pure function."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from rayff.cluster.actor import remote_stage
from rayff.cluster.pipeline import wait_for
from rayff.cluster.placement import default_num_stages, nodes, stage_resources
from rayff.cluster.session import ray_session
from rayff.data.tasks import TASKS, load_task, task_recipe
from rayff.partition.cuts import balanced_cuts
from rayff.partition.plan import Plan, StageResources
from rayff.partition.profile import costs
from rayff.spec import Architecture, Recipe, RunSpec, architecture
from rayff.training.preparation import check_cut_wishes
from rayff.training.stage import DTYPES


def make_plan(
    run: RunSpec,
    network: Architecture,
    recipe: Recipe,
    each: StageResources,
    num_stages: int,
    actor: ActorHandle[Any],
) -> Plan:
    """Time the layers on `actor`; return the cuts that the run asks for, or else the best."""
    ((layer_s, seconds_per_byte),) = wait_for(
        [actor.profile.remote(network, recipe, run.precision)], "timed the layers"
    )
    measured = costs(
        network,
        layer_s,
        batch_size=recipe.batch_size,
        bytes_per_element=DTYPES[run.precision].itemsize,
        seconds_per_byte=seconds_per_byte,
    )
    cuts = balanced_cuts(measured, num_stages) if run.cuts is None else run.cuts
    return Plan(architecture=network, cuts=cuts, resources=each, costs=measured)


def plan_run(run: RunSpec) -> dict[str, Any]:
    """Return the plan that a run would have, as plain data.

    The cluster need not hold all its stages: one is enough to time the layers.

    Raises:
        UserError: as in training.
    """
    network = _network(run)
    check_cut_wishes(run, len(network))
    recipe = run.recipe(task_recipe(run.task))
    with ray_session():
        there = nodes()
        num_stages = default_num_stages(run, there, len(network))
        if run.cpus_per_stage is None:
            total = sum(node.cpus for node in there)
            run = dataclasses.replace(run, cpus_per_stage=max(1.0, total // num_stages))
        each = stage_resources(run, there, 1)
        actor = remote_stage({}, num_cpus=each.cpus, num_gpus=each.gpus).remote(
            each.threads, "cuda" if each.gpus else "cpu"
        )
        try:
            plan = make_plan(run, network, recipe, each, num_stages, actor)
        finally:
            ray.kill(actor)
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
    seconds = plan.costs.stages_s(plan.cuts)
    onward = [
        plan.architecture.crossing(cut) * recipe.batch_size * bytes_per_element
        for cut in plan.cuts
    ]
    return {
        "architecture": plan.architecture.name,
        "batch_size": recipe.batch_size,
        "each": str(plan.resources),
        "cuts": list(plan.cuts),
        "speedup": plan.costs.speedup(plan.cuts),
        "layer_seconds": list(plan.costs.layer_s),
        "stages": [
            {
                "layers": name.split()[-1],
                "seconds": stage_s,
                "share": stage_s / max(seconds),
                "bytes_onward": bytes_onward,
            }
            for name, stage_s, bytes_onward in zip(
                plan.stage_names, seconds, [*onward, 0], strict=True
            )
        ],
    }
