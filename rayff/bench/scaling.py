"""python -m rayff.bench scaling: pipelines against one stage, and against their plan.

Real actors train on made-up images of CIFAR-10's shape. A run's figures are of its steady state:
from the end of a few batches that fill the pipeline to the end of the last one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayff.bench.outcome import Outcome, at_least_one, check_save, median, spread
from rayff.cli import parse
from rayff.config.train_config import Precision, TrainConfig
from rayff.data.images import ImageSet
from rayff.data.tasks import TaskData
from rayff.engine.commands import Report, Train
from rayff.engine.learner import StageSpec
from rayff.engine.pipeline import LocalPipeline, Pipeline
from rayff.engine.preparation import Prepared, check_plan_wishes
from rayff.engine.stage import local_stage
from rayff.kernels.precision import DTYPES, default_precision
from rayff.models.architecture import IMAGE_SIZE
from rayff.models.zoo import architecture
from rayff.partition.boundaries import Costs, Division, balanced_boundaries, balanced_division
from rayff.partition.plan import Plan
from rayff.partition.profile import Conditions, time_layers
from rayff.partition.simulation import simulate
from rayff.runs.run_directory import RunDirectory

DESCRIPTION = """\
Measure pipelines of 1, 2, ... stages, one CPU and thread per stage, on random images.

Examples:
  rayff bench scaling --arch tinycnn --batch-size 16 --steps 12 --repeats 1
  rayff bench scaling --arch resnet --stages 1,2,4 --save bench-scaling.json

Notes:
- Prints images/s, the speed-up over one stage, the limit that the best cut
  between layers sets, the utilization of each stage and the plan's prediction.
- For comparison: one process with one thread per core.
- More stages than cores, and 8, 16 and 64 devices, are simulated from measured
  layer times and object store throughput.
"""

SIMULATED = (8, 16, 64)
SIMULATED_BATCHES = 352
"""As in an epoch of CIFAR-10."""


@dataclass(frozen=True, kw_only=True)
class ScalingCommand:
    """The options."""

    arch: str = "resnet"
    """Architecture: {architectures}."""
    stages: tuple[int, ...] = (1, 2, 4)
    """Numbers of stages, such as 1,2,4."""
    replicas: str = "2"
    """Actors per stage of one more pipeline, with replicas, such as 1,2; none leaves it out."""
    batch_size: int = 128
    """Images per batch."""
    steps: int = 8
    """Batches in steady state per run."""
    precision: Precision | None = None
    """Number format of convolutions and features. Default: as in training."""
    repeats: int = 3
    """Repetitions of each pipeline, of which the median is reported."""
    save: str | None = None
    """JSON file to write the figures to."""


@dataclass(frozen=True, kw_only=True)
class Steady:
    """One run's steady state."""

    batch_s: float
    """Seconds from one batch to the next."""
    busy: list[float]
    """Share of the time that each stage works."""


def main(args: Sequence[str]) -> int:
    """Run, print, and save where asked."""
    command = parse(
        ScalingCommand, module="rayff.bench scaling", description=DESCRIPTION, args=args
    )
    at_least_one(
        batch_size=command.batch_size,
        steps=command.steps,
        repeats=command.repeats,
        stages=min(command.stages),
    )
    check_save(command.save)
    outcome = measure(command)
    outcome.show()
    outcome.save(command.save)
    return 0


def measure(command: ScalingCommand) -> Outcome:
    """Return the benchmark's tables and figures."""
    from rayff.distributed.placement import nodes
    from rayff.distributed.session import ray_session

    outcome = Outcome("scaling", dataclasses.asdict(command))
    with ray_session():
        room = int(sum(node.cpus for node in nodes()))
        runs = {
            f"{count} stage{'s' if count > 1 else ''}": _run(command, stages=count)
            for count in dict.fromkeys((1, *command.stages))
            if count <= room
        }
        if command.replicas != "none":
            run = _run(command, replicas=command.replicas)
            if sum(run.replica_counts or ()) <= room:
                runs[f"replicas {command.replicas}"] = run
        parts = command.replicas if f"replicas {command.replicas}" in runs else ""
        apart = f"{parts} apart, without sums" if parts.isdigit() else ""
        measured: dict[str, list[Steady]] = {}
        plans: dict[str, Plan] = {}
        for name, run in runs.items():  # what the layers cost is found before the clock runs
            plans[name], _ = _train(run, steps=0)
        threads = os.cpu_count() or 1
        alone = f"one process, {threads} threads"
        for _ in range(command.repeats):
            for name, run in runs.items():
                _, steady = _train(run, steps=command.steps)
                measured.setdefault(name, []).append(steady)
            if apart:
                measured.setdefault(apart, []).append(_train_apart(command))
            measured.setdefault(alone, []).append(_train_here(command, threads))
    _real(outcome, command, measured, plans)
    simulated = sorted({*(count for count in command.stages if count > room), *SIMULATED})
    widest = plans[max(runs, key=lambda name: plans[name].num_actors)]
    _simulated(outcome, command, widest.costs, simulated)
    return outcome


def _run(command: ScalingCommand, **wishes: Any) -> TrainConfig:
    settings: dict[str, Any] = {
        "arch": command.arch,
        "batch_size": command.batch_size,
        "precision": command.precision,
        "device": "cpu",
        "cpus_per_stage": 1,
        "chunk": 1,
        "run_dir": "bench",
    }
    run = TrainConfig(**{**settings, **wishes}).resolved({})
    network = architecture(command.arch, num_classes=10, image_channels=3)
    check_plan_wishes(run, len(network), command.batch_size)
    return run


def prepared(run: TrainConfig) -> Prepared:
    """Return a run on made-up images, with which nothing is written."""
    network = architecture(run.arch, num_classes=10, image_channels=3)
    size = run.batch_size or 1
    generator = np.random.default_rng(0)
    images = ImageSet(
        images=generator.integers(0, 256, (size, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8),
        labels=generator.integers(0, 10, size),
    )
    names = tuple(map(str, range(10)))
    data = TaskData(name="made up", class_names=names, train=images, valid=images, test=images)
    return Prepared(
        run=run,
        recipe=run.recipe({}),
        data=data,
        architecture=network,
        directory=RunDirectory(Path(str(run.run_dir))),
        checkpoint=None,
    )


def _train(run: TrainConfig, steps: int) -> tuple[Plan, Steady]:
    """Train through actors; return their plan and the steady state."""
    from rayff.distributed.training import open_pipeline

    with open_pipeline(prepared(run), notify=lambda message: None) as (plan, pipeline):
        if steps == 0:
            return plan, Steady(batch_s=0.0, busy=[])
        return plan, steady_state(pipeline, run, fill=plan.num_stages + 2, steps=steps)


def _train_apart(command: ScalingCommand) -> Steady:
    """Train single stages at once, each on its own part of a batch: what no replicas can beat.

    They step all weights as replicas do, and add up nothing.
    """
    from rayff.distributed.training import open_pipeline

    parts = int(command.replicas)
    runs = [
        _run(command, stages=1, batch_size=command.batch_size // parts, run_dir=f"bench-{part}")
        for part in range(parts)
    ]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(parts) as threads:
        pipelines = [
            stack.enter_context(open_pipeline(prepared(run), notify=lambda message: None))[1]
            for run in runs
        ]
        steady = list(
            threads.map(
                lambda pipeline, run: steady_state(pipeline, run, fill=3, steps=command.steps),
                *(pipelines, runs),
            )
        )
    return Steady(
        batch_s=max(each.batch_s for each in steady),
        busy=[share for each in steady for share in each.busy],
    )


def _train_here(command: ScalingCommand, threads: int) -> Steady:
    """Train in this process, without actors."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    run, device = _run(command, stages=1), torch.device("cpu")
    precision = run.precision or default_precision(device)
    made = prepared(run)
    conditions = Conditions(
        recipe=made.recipe, num_classes=10, device=device, dtype=DTYPES[precision]
    )
    spec = StageSpec(
        architecture=made.architecture,
        is_last=True,
        recipe=made.recipe,
        seed=run.seed,
        precision=precision,
        kernels=tuple(layer.kernels for layer in time_layers(made.architecture, conditions)),
    )
    try:
        pipeline = LocalPipeline([local_stage(spec, device, made.splits)])
        return steady_state(pipeline, run, fill=1, steps=command.steps)
    finally:
        torch.set_num_threads(before)


def steady_state(pipeline: Pipeline, run: TrainConfig, *, fill: int, steps: int) -> Steady:
    """Train on `fill` batches and then on `steps` more, which count."""
    indices = np.arange(run.batch_size or 1)
    commands = (
        Train(epoch=0, step=step, lr=0.01, batches=(indices,)) for step in range(fill + steps)
    )
    arrived: list[float] = []
    reports: list[Sequence[Report]] = []
    for _, report in pipeline.stream(commands):
        arrived.append(time.perf_counter())
        reports.append(report)
    busy = []
    for stage in zip(*reports, strict=True):
        ends = [report.started_s + report.busy_s for report in stage]
        worked = sum(report.busy_s for report in stage[fill:])
        busy.append(worked / (ends[-1] - ends[fill - 1]))
    return Steady(batch_s=(arrived[-1] - arrived[fill - 1]) / steps, busy=busy)


def ceiling(costs: Costs, plan: Plan) -> float:
    """Return the speed-up if stages only computed: all layers over the slowest stage."""
    free = dataclasses.replace(
        costs, boundary_s=[0.0] * len(costs.layer_s), all_reduce_s=[0.0] * len(costs.layer_s)
    )
    return free.speedup(plan.cuts, plan.replicas)


def _real(
    outcome: Outcome,
    command: ScalingCommand,
    measured: dict[str, list[Steady]],
    plans: dict[str, Plan],
) -> None:
    table = outcome.table(
        f"{command.arch}, batch {command.batch_size}: measured, one thread a stage",
        *("pipeline", "layers of each stage", "seconds a batch", "images/s", "speed-up"),
        *("ceiling", "of it", "predicted", "bottleneck idle", "busy share of each stage"),
    )
    base = median([steady.batch_s for steady in measured["1 stage"]])
    rows = []
    for name, runs in measured.items():
        seconds = [steady.batch_s for steady in runs]
        speedup = base / median(seconds)
        busy = [median(stage) for stage in zip(*(s.busy for s in runs), strict=True)]
        plan = plans.get(name)
        most = None if plan is None else ceiling(plan.costs, plan)
        predicted = None if plan is None else max(plan.stages_s)
        table.add_row(
            name,
            "all" if plan is None else " | ".join(plan.layer_ranges),
            spread(seconds, digits=3),
            f"{command.batch_size / median(seconds):.1f}",
            f"{speedup:.2f}x",
            "-" if most is None else f"{most:.2f}x",
            "-" if most is None else f"{100 * speedup / most:.0f}%",
            "-" if predicted is None else f"{predicted:.3f} s",
            f"{100 * (1 - max(busy)):.1f}%",
            " ".join(f"{100 * share:.0f}%" for share in busy),
        )
        rows.append(
            {
                "pipeline": name,
                "cuts": None if plan is None else plan.cuts,
                "replicas": None if plan is None else plan.replicas,
                "seconds_a_batch": seconds,
                "images_per_s": command.batch_size / median(seconds),
                "speedup": speedup,
                "ceiling": most,
                "predicted_seconds_a_batch": predicted,
                "busy": busy,
                "bottleneck_idle": 1 - max(busy),
            }
        )
    outcome.figures["measured"] = rows
    alone = next(name for name in measured if name.startswith("one process"))
    if "2 stages" in measured:
        ratio = median([s.batch_s for s in measured[alone]]) / median(
            [s.batch_s for s in measured["2 stages"]]
        )
        outcome.figures["two_stages_against_one_process"] = ratio
        outcome.notes.append(f"2 stages of one thread against {alone}: {ratio:.2f}x")
    outcome.notes.append(
        "ceiling: all layers over the slowest stage, by the measured layer times, transfers free; "
        "apart: single stages at once, each with its part of a batch, which add up nothing"
    )


def _simulated(
    outcome: Outcome, command: ScalingCommand, costs: Costs, counts: Sequence[int]
) -> None:
    table = outcome.table(
        f"{command.arch}, batch {command.batch_size}: SIMULATED from the measured layer times "
        f"and object store, {SIMULATED_BATCHES} batches",
        *("devices", "plan", "actors", "images/s", "speed-up", "bottleneck idle"),
    )
    layers = len(costs.layer_s)
    rows = []
    one = simulate(costs, (), batch_size=command.batch_size, num_chunks=SIMULATED_BATCHES)
    for count in counts:
        stages = min(count, layers)
        alone = Division(cuts=balanced_boundaries(costs, (1,) * stages), replicas=(1,) * stages)
        both = balanced_division(costs, count, command.batch_size)
        for name, division in (("cuts alone", alone), ("cuts and replicas", both)):
            played = simulate(
                costs,
                division.cuts,
                division.replicas,
                batch_size=command.batch_size,
                num_chunks=SIMULATED_BATCHES,
                window=len(division.replicas) + 2,
            )
            speedup = played.images_per_s / one.images_per_s
            actors = sum(division.replicas)
            idle = 1 - max(played.stage_busy)
            table.add_row(
                str(count),
                name,
                str(actors),
                f"{played.images_per_s:.1f}",
                f"{speedup:.2f}x",
                f"{100 * idle:.1f}%",
            )
            rows.append(
                {
                    "simulated": True,
                    "devices": count,
                    "plan": name,
                    "cuts": division.cuts,
                    "replicas": division.replicas,
                    "images_per_s": played.images_per_s,
                    "speedup": speedup,
                    "bottleneck_idle": idle,
                }
            )
    outcome.figures["simulated"] = rows
