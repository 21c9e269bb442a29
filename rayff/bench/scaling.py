"""The command `rayff bench scaling`: Train pipelines of actors on random images, one CPU a stage.

Prints images/s, speed-up over one stage, the ceiling that the best cut of whole layers allows, how
busy each stage is, and what the plan predicted; all in the steady state, without fill and drain.
One process with as many threads as there are cores is measured as well.

More stages than there are cores are simulated from the measured layer times and the measured speed
of the object store, and so are 8, 16 and 64 devices, with and without replicas.

Examples:
  rayff bench scaling --arch tinycnn --batch-size 16 --steps 12 --repeats 1
  rayff bench scaling --arch resnet --stages 1,2,4 --save bench-scaling.json
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
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
from rayff.partition.boundaries import Costs, Division, balanced_boundaries, balanced_division
from rayff.partition.plan import Plan
from rayff.partition.simulation import simulate

SIMULATED = (8, 16, 64)
SIMULATED_BATCHES = 352
"""As in an epoch of CIFAR-10."""


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
        measured = in_turns(works, command.repeats, warm_up=False)  # each run fills its pipeline
    _measured(results, command, measured)
    _simulated(results, command, measured, cores)


main = benchmark(ScalingCommand, measure)


def ceiling(plan: Plan) -> float:
    """Return the speed-up if stages only computed: all layers over the slowest stage."""
    nothing = [0.0] * len(plan.costs.layer_s)
    free = dataclasses.replace(plan.costs, boundary_s=nothing, all_reduce_s=nothing)
    return free.speedup(plan.cuts, plan.replicas)


def _measured(
    results: Results, command: ScalingCommand, measured: dict[str, list[SteadyState]]
) -> None:
    seconds = {name: [run.batch_s for run in runs] for name, runs in measured.items()}
    rows = []
    for name, runs in measured.items():
        plan, batch_s = runs[0].plan, median(seconds[name])
        speedup, most = median(seconds["1 stage"]) / batch_s, plan and ceiling(plan)
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
                "predicted_seconds_a_batch": plan and max(plan.stages_s),
                "busy": busy,
                "bottleneck_idle": 1 - max(busy),
            }
        )
    results.figures["measured"] = rows
    results.table(
        f"{command.arch}, batch {command.batch_size}: measured, one thread a stage",
        rows,
        "pipeline layers seconds_a_batch images_per_s speedup ceiling share_of_ceiling "
        "predicted_seconds_a_batch bottleneck_idle busy",
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
    results: Results, command: ScalingCommand, measured: dict[str, list[SteadyState]], cores: int
) -> None:
    """Add larger pipelines, simulated with the costs of the largest one that was measured."""
    plans = [runs[0].plan for runs in measured.values() if runs[0].plan is not None]
    costs = max(plans, key=lambda plan: plan.num_actors).costs
    alone, _ = _play(costs, Division(cuts=(), replicas=(1,)), command.batch_size)
    rows = []
    for count in sorted({*(count for count in command.stages if count > cores), *SIMULATED}):
        ones = (1,) * min(count, len(costs.layer_s))
        divisions = {
            "cuts alone": Division(cuts=balanced_boundaries(costs, ones), replicas=ones),
            "cuts and replicas": balanced_division(costs, count, command.batch_size),
        }
        for name, division in divisions.items():
            images_per_s, idle = _play(costs, division, command.batch_size)
            rows.append(
                {
                    "simulated": True,
                    "devices": count,
                    "plan": name,
                    **dataclasses.asdict(division),
                    "actors": sum(division.replicas),
                    "images_per_s": images_per_s,
                    "speedup": images_per_s / alone,
                    "bottleneck_idle": idle,
                }
            )
    results.figures["simulated"] = rows
    results.table(
        f"{command.arch}, batch {command.batch_size}: SIMULATED from the measured layer times "
        f"and object store, {SIMULATED_BATCHES} batches",
        rows,
        "devices plan actors images_per_s speedup bottleneck_idle",
    )


def _play(costs: Costs, division: Division, batch_size: int) -> tuple[float, float]:
    """Return the images/s of a simulated pipeline, and the share that its bottleneck is idle."""
    found = simulate(
        *(costs, division.cuts, division.replicas),
        batch_size=batch_size,
        num_chunks=SIMULATED_BATCHES,
        window=len(division.replicas) + 2,
    )
    return found.images_per_s, 1 - max(found.stage_busy)
