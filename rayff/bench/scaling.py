"""The command `rayff bench scaling`: Train pipelines of actors on random images, one CPU a stage.

Prints images/s, speed-up over one stage, the ceiling that the best cut of whole layers allows, and
how busy each stage is; all in the steady state, without fill and drain. One process with as many
threads as there are cores is measured as well.

In each turn the layers are profiled anew, as by `rayff plan --save-profile`, and each pipeline is
predicted from that profile, as by `rayff plan --simulate`. More devices than there are cores are
simulated from the last profile, with and without replicas.

Examples:
  rayff bench scaling --arch tinycnn --batch-size 16 --steps 12 --repeats 1
  rayff bench scaling --arch resnet --stages 1,2,4 --save bench-scaling.json
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median
from threading import Barrier
from typing import Any

from rayff.bench.command import BenchCommand, NetworkOptions, benchmark, train_config
from rayff.bench.results import Results, in_turns
from rayff.bench.workload import Backend, SteadyState, random_run, train_steadily
from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.engine.local import train_locally
from rayff.partition.device_profile import DeviceProfile
from rayff.partition.plan import Plan
from rayff.partition.scale import Scenario, measured_cluster, predict

SIMULATED = (8, 16, 64)


@dataclass(frozen=True, kw_only=True)
class ScalingCommand(NetworkOptions, BenchCommand):
    """The options."""

    stages: tuple[int, ...] = (1, 2, 4)
    """Numbers of stages to try, such as 1,2,4."""
    replicas: str = "2"
    """One more pipeline with replicas: actors of each stage, such as 1,2; none to leave it out."""
    steps: int = 8
    """Batches in the steady state of a run."""
    repeats: int = 3
    """Runs of each pipeline, of which the median is reported."""


def measure(command: ScalingCommand, results: Results) -> None:
    """Fill in the tables and figures."""
    from rayff.distributed.controller import train_on_cluster
    from rayff.distributed.placement import nodes
    from rayff.distributed.profiling import measure_profile
    from rayff.distributed.session import ray_session

    usual = {"device": "cpu", "cpus_per_stage": 1, "stages": None, "replicas": None}

    def run(options: dict[str, Any], backend: Backend = train_on_cluster) -> SteadyState:
        return train_steadily(command, backend, command.steps, **{**usual, **options})

    def in_one_process(threads: int) -> SteadyState:
        found = run({"stages": 1, "cpus_per_stage": threads}, train_locally)
        return dataclasses.replace(found, plan=None)

    def separate(count: int) -> SteadyState:
        """Train single stages at once, each on its part of a batch: replicas cannot be faster.

        They step all weights as replicas do, without an all-reduce.
        """
        barrier = Barrier(count)
        part = {"stages": 1, "batch_size": command.batch_size // count, "begin": barrier.wait}

        def run_part(_: int) -> SteadyState:
            try:
                return run(part)
            except BaseException:
                barrier.abort()  # the others wait for this one
                raise

        with ThreadPoolExecutor(count) as threads:
            found = list(threads.map(run_part, range(count)))
        busy = [share for each in found for share in each.busy]
        return SteadyState(batch_s=max(each.batch_s for each in found), busy=busy, plan=None)

    with ray_session():
        cores, threads = int(sum(node.cpus for node in nodes())), os.cpu_count() or 1
        pipelines: dict[str, dict[str, Any]] = {
            f"{count} stage{'s' if count > 1 else ''}": {"stages": count}
            for count in dict.fromkeys((1, *command.stages))
            if count <= cores
        }
        copies = command.replicas
        counts = () if copies == "none" else TrainConfig(replicas=copies).replica_counts
        if counts is None:
            raise UserError(f"--replicas {copies}: give the actors of each stage, or none")
        if counts and sum(counts) <= cores:
            pipelines[f"replicas {copies}"] = {"replicas": copies}
        for options in pipelines.values():  # what does not fit is refused before the first run
            random_run(train_config(command, **{**usual, **options}))
        works: dict[str, Callable[[], SteadyState]] = {
            name: partial(run, options) for name, options in pipelines.items()
        }
        if f"replicas {copies}" in works and copies.isdigit():
            works[f"{copies} separate, no all-reduce"] = partial(separate, int(copies))
        works[f"one process, {threads} threads"] = partial(in_one_process, threads)
        largest = max(count for count in (1, *command.stages) if count <= cores)
        several = {**usual, "task": "cifar10", "stages": max(largest, min(2, cores))}
        profiles: list[DeviceProfile] = []

        def profile_first(name: str) -> SteadyState:
            if name == "1 stage":
                profiles.append(measure_profile(train_config(command, **several), "bench scaling"))
            return works[name]()

        turns = {name: partial(profile_first, name) for name in works}
        measured = in_turns(turns, command.repeats, warm_up=False)  # each run fills its pipeline
    _measured(results, command, measured, profiles)
    _simulated(results, command, measured, profiles[-1], cores)


main = benchmark(ScalingCommand, measure)


def ceiling(plan: Plan) -> float:
    """Return the speed-up if stages only computed: all layers over the slowest stage."""
    nothing = [0.0] * len(plan.costs.layer_s)
    free = dataclasses.replace(plan.costs, boundary_s=nothing, all_reduce_s=nothing)
    return free.speedup(plan.cuts, plan.replicas)


def scenario(profile: DeviceProfile, plan: Plan, batch_size: int) -> Scenario:
    """Return what a profile is asked: the plan's network, one batch in each chunk."""
    return Scenario(
        profile=profile,
        architecture=plan.architecture,
        cluster=measured_cluster(profile),
        batch_size=batch_size,
        chunk=1,
    )


def predicted_s(profile: DeviceProfile, plan: Plan, batch_size: int) -> float:
    """Return the seconds of a batch that a profile predicts of a plan."""
    asked = dataclasses.replace(
        scenario(profile, plan, batch_size),
        cuts=plan.cuts,
        replicas=plan.replicas,
        window=plan.num_stages + 2,
    )
    return predict(asked, plan.num_actors).batch_s


def _measured(
    results: Results,
    command: ScalingCommand,
    measured: dict[str, list[SteadyState]],
    profiles: Sequence[DeviceProfile],
) -> None:
    seconds = {name: [run.batch_s for run in runs] for name, runs in measured.items()}
    rows = []
    for name, runs in measured.items():
        plan, batch_s = runs[0].plan, median(seconds[name])
        speedup, most = median(seconds["1 stage"]) / batch_s, plan and ceiling(plan)
        predicted = plan and [predicted_s(each, plan, command.batch_size) for each in profiles]
        busy = [median(stage) for stage in zip(*(run.busy for run in runs), strict=True)]
        rows.append(
            {
                "pipeline": name,
                "layers": "all" if plan is None else " | ".join(plan.layer_ranges),
                "cuts": plan and plan.cuts,
                "replicas": plan and plan.replicas,
                "seconds_a_batch": seconds[name],
                "images_per_s": command.batch_size / batch_s,
                "speedup": speedup,
                "ceiling": most,
                "share_of_ceiling": most and speedup / most,
                "predicted_seconds_a_batch": predicted,
                "predicted_share": predicted
                and [s / taken for s, taken in zip(predicted, seconds[name], strict=True)],
                "busy": busy,
                "bottleneck_idle": 1 - max(busy),
            }
        )
    results.figures["measured"] = rows
    results.table(
        f"{command.arch}, batch {command.batch_size}: measured, one thread a stage",
        rows,
        "pipeline layers seconds_a_batch images_per_s speedup ceiling share_of_ceiling "
        "predicted_seconds_a_batch predicted_share bottleneck_idle busy",
    )
    shares = [median(row["predicted_share"]) for row in rows if row["predicted_share"]]
    worst = max(abs(share - 1) for share in shares)
    results.figures["largest_prediction_error"] = worst
    results.notes.append(
        "predicted share: predicted over measured seconds of the same turn; the medians of the "
        f"pipelines differ from 100% by {worst:.1%} at most"
    )
    if "2 stages" in measured:
        *_, alone = seconds.values()
        ratio = median(alone) / median(seconds["2 stages"])
        results.figures["two_stages_against_one_process"] = ratio
        results.notes.append(f"2 stages of one thread against one process: {ratio:.2f}x")
    results.notes.append(
        "ceiling: all layers over the slowest stage, by the measured layer times, transfers free; "
        "separate: single stages at once, each with its part of a batch"
    )


def _simulated(
    results: Results,
    command: ScalingCommand,
    measured: dict[str, list[SteadyState]],
    profile: DeviceProfile,
    cores: int,
) -> None:
    """Add larger pipelines, simulated from a profile."""
    plan = next(runs[0].plan for runs in measured.values() if runs[0].plan is not None)
    any_plan = scenario(profile, plan, command.batch_size)
    alone = predict(any_plan, 1)
    rows = []
    for count in sorted({*(count for count in command.stages if count > cores), *SIMULATED}):
        ones = (1,) * min(count, len(plan.architecture))
        asked = {
            "cuts alone": dataclasses.replace(any_plan, replicas=ones),
            "cuts and replicas": any_plan,
        }
        for name, each in asked.items():
            found = predict(each, count)
            rows.append(
                {
                    "simulated": True,
                    "devices": count,
                    "plan": name,
                    **dataclasses.asdict(found.division),
                    "actors": found.actors,
                    "images_per_s": found.images_per_s,
                    "speedup": alone.batch_s / found.batch_s,
                }
            )
    results.figures["simulated"] = rows
    results.table(
        f"{command.arch}, batch {command.batch_size}: SIMULATED from the last profile, "
        f"{profile.devices_per_node} cores a node, {profile.network.bytes_per_s / 1e9:g} GB/s "
        f"between nodes ({profile.network.source})",
        rows,
        "devices plan actors images_per_s speedup",
    )
