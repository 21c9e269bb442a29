"""A plan simulated from a profile, as plain data for the command `rayff plan`."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rayff.config.errors import UserError
from rayff.config.simulation import DEVICES, SimulationOptions
from rayff.config.train_config import TrainConfig
from rayff.engine.preparation import assemble_without_data
from rayff.partition.device_profile import ELEMENT_BYTES, DeviceProfile, LinkRate, read_profile
from rayff.partition.failures import Failures
from rayff.partition.plan import stage_memory_bytes
from rayff.partition.scale import Prediction, Scenario, measured_cluster, predict

IMAGES = 45_000
"""Of an epoch: those of CIFAR-10."""
SNAPSHOT_S = 2.0
RESTART_S = 12.0
"""As docs/checkpoints.md has them measured."""

_OF_THE_PROFILE = ("stages", "rule", "kernels", "cpus_per_stage")
"""Options that a simulated plan takes from the profile."""


def simulated_plan(config: TrainConfig, options: SimulationOptions) -> dict[str, Any]:
    """Return the plans for several numbers of devices, as plain data.

    Raises:
        UserError: options, network or profile that do not fit.
    """
    for name in _OF_THE_PROFILE:
        if getattr(config, name) is not None:
            raise UserError(
                f"--{name.replace('_', '-')} has no use with --simulate, which plans for "
                "--devices with the times of the profile"
            )
    profile = read_profile(str(options.simulate))
    if config.precision not in (None, profile.precision):
        raise UserError(
            f"--precision {config.precision}: the profile of {profile.hardware} is in "
            f"{profile.precision}; leave the option out, or take another profile"
        )
    profile, run = _given(options, profile), assemble_without_data(config)
    scenario = Scenario(
        profile=profile,
        architecture=run.architecture,
        cluster=measured_cluster(profile),
        batch_size=run.recipe.batch_size,
        loss=config.loss,
        least_images=options.least_images or 1,
        images=options.images or IMAGES,
        epochs=run.recipe.epochs,
        cuts=config.cuts,
        replicas=config.replica_counts,
        chunk=options.chunk,
        window=options.window,
    )
    if scenario.least_images > scenario.batch_size:
        raise UserError(
            f"--least-images {scenario.least_images} is more than the {scenario.batch_size} of a "
            "batch; raise --batch-size"
        )
    alone = predict(dataclasses.replace(scenario, cuts=None, replicas=None), 1)
    asked = sorted(set(options.devices or DEVICES))
    model = scenario.model(max(asked))
    return {
        "simulated": True,
        "architecture": run.architecture.name,
        "batch_size": scenario.batch_size,
        "precision": profile.precision,
        "hardware": profile.hardware,
        "times": model.source,
        "measured_batch_sizes": list(model.batch_sizes),
        "devices_per_node": profile.devices_per_node,
        "links": {
            "node": dataclasses.asdict(profile.node),
            "network": dataclasses.asdict(profile.network),
        },
        "ray": dataclasses.asdict(profile.ray),
        "epochs": scenario.epochs,
        "images": scenario.images,
        "plans": [_plan(predict(scenario, n), alone, scenario, options) for n in asked],
    }


def _given(options: SimulationOptions, profile: DeviceProfile) -> DeviceProfile:
    """Return the profile with the node and the links of the options."""

    def link(name: str, rate: LinkRate) -> LinkRate:
        bandwidth = getattr(options, f"{name}_bandwidth")
        latency = getattr(options, f"{name}_latency")
        if bandwidth is None and latency is None:
            return rate
        return LinkRate(
            bytes_per_s=rate.bytes_per_s if bandwidth is None else 1e9 * bandwidth,
            latency_s=rate.latency_s if latency is None else 1e-6 * latency,
            source=f"given by --{name}-bandwidth or --{name}-latency, else {rate.source}",
        )

    node = link("node", profile.node)
    return dataclasses.replace(
        profile,
        devices_per_node=options.devices_per_node or profile.devices_per_node,
        node=node,
        network=link("network", profile.network),
        node_all_reduce=profile.node_all_reduce if node is profile.node else None,
    )


def _plan(
    found: Prediction, alone: Prediction, scenario: Scenario, options: SimulationOptions
) -> dict[str, Any]:
    speedup = alone.batch_s / found.batch_s
    return {
        "devices": found.devices,
        "actors": found.actors,
        "cuts": list(found.division.cuts),
        "replicas": list(found.division.replicas),
        "chunk": found.costs.chunk,
        "window": found.window,
        "seconds_a_batch": found.batch_s,
        "images_per_s": found.images_per_s,
        "speedup": speedup,
        "efficiency": speedup / found.devices,
        "bottleneck": found.bottleneck,
        "epoch_seconds": found.epoch_s,
        "training_seconds": found.run_s,
        "failures": options.mtbf and _failures(found, scenario.epochs, options, options.mtbf),
        "stages": _stages(found, scenario),
    }


def _failures(
    found: Prediction, epochs: int, options: SimulationOptions, mtbf: float
) -> dict[str, Any]:
    failures = Failures(
        rate_per_s=found.actors / (3600 * mtbf),
        snapshot_s=options.snapshot_cost or SNAPSHOT_S,
        restart_s=RESTART_S if options.restart is None else options.restart,
    )
    best_s = failures.best_interval_s
    best = max(1, min(epochs, round(best_s / found.epoch_s)))
    every = options.checkpoint_every or best
    lost = failures.lost(every * found.epoch_s)
    return {
        "per_day": 86_400 * failures.rate_per_s,
        "snapshot_seconds": failures.snapshot_s,
        "restart_seconds": failures.restart_s,
        "checkpoint_every": every,
        "lost": lost,
        "best_checkpoint_every": best,
        "best_interval_seconds": best_s,
        "lost_at_best": failures.lost(best * found.epoch_s),
        "training_seconds": found.run_s / (1 - lost) if lost < 1 else None,
    }


def _stages(found: Prediction, scenario: Scenario) -> list[dict[str, Any]]:
    costs, division = found.costs, found.division
    parts = scenario.architecture.stages(division.cuts)
    bounds = [0, *division.cuts, len(costs.layer_s)]
    inside = costs.link is scenario.cluster.node
    rows = []
    for part, start, end, replicas in zip(
        parts, bounds, bounds[1:], division.replicas, strict=False
    ):
        images = math.ceil(scenario.batch_size / replicas)
        last = end == len(costs.layer_s)
        rows.append(
            {
                "first_layer": start,
                "last_layer": end - 1,
                "replicas": replicas,
                "images": images,
                "seconds": costs.work_s(start, end, replicas),
                "sum_seconds": costs.sums_s(start, end, replicas),
                "link_seconds": costs.link_s(end, replicas),
                "share": costs.work_s(start, end, replicas) / found.batch_s,
                "weights": part.num_weights,
                "memory_bytes": stage_memory_bytes(
                    part, images, ELEMENT_BYTES[scenario.profile.precision]
                ),
                "bytes_onward": 0 if last else costs.boundary_bytes[end],
                "onward": None if last else "in the node" if inside else "between nodes",
            }
        )
    return rows
