"""What benchmarks time: steps and short trainings on random images of CIFAR-10's shape."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from rayff.bench.command import BenchCommand, train_config
from rayff.config.train_config import TrainConfig
from rayff.data.images import ImageSet
from rayff.data.loading import data_options
from rayff.data.tasks import TaskData
from rayff.engine.callbacks import Callback
from rayff.engine.commands import Batch, Evaluate, Report, Train
from rayff.engine.learner import StageSpec, make_learner
from rayff.engine.preparation import assemble
from rayff.engine.run import PreparedRun, Run, TrainResult
from rayff.kernels.precision import DTYPES
from rayff.kernels.timing import clock
from rayff.learning.chain import Activations, normalise
from rayff.learning.generators import Share
from rayff.partition.plan import Plan
from rayff.partition.profile import Conditions
from rayff.runs.run_directory import RunDirectory

NUM_CLASSES = 10


def random_run(config: TrainConfig, num_batches: int = 1) -> PreparedRun:
    """Return a run on so many batches of random images, and one image each to evaluate on."""
    config = dataclasses.replace(config, task="cifar10")  # whose recipe is the architecture's
    size = data_options(config).size
    shape = ((config.batch_size or 1) * num_batches, 3, size, size)
    generator = np.random.default_rng(0)
    images = ImageSet(
        images=generator.integers(0, 256, shape, dtype=np.uint8),
        labels=generator.integers(0, NUM_CLASSES, shape[0]),
    )
    names = tuple(map(str, range(NUM_CLASSES)))
    one = images.take(np.arange(1))
    data = TaskData(name="random", class_names=names, train=images, valid=one, test=one)
    return assemble(config, data, RunDirectory(Path(config.run_dir or "random")))


def conditions(run: Run, device: torch.device) -> Conditions:
    """Return what the times of the run's layers depend on."""
    return Conditions(
        recipe=run.recipe,
        num_classes=NUM_CLASSES,
        device=device,
        dtype=DTYPES[run.resolved.precision],
        rule=run.resolved.rule,
    )


def training_step(run: Run, device: torch.device, **options: Any) -> Callable[[int], float]:
    """Return a function that trains all layers on so many images and returns its seconds.

    Args:
        run: on random images.
        device: where it computes.
        options: of the learner.
    """
    spec = StageSpec(architecture=run.architecture, is_last=True, config=run.resolved)
    learner = make_learner(spec, device, **options)
    train = run.data.train
    assert isinstance(train, ImageSet), "random_run makes them"
    pixels, labels = torch.tensor(train.images), torch.tensor(train.labels)
    steps = itertools.count()

    def step(images: int) -> float:
        features = normalise(pixels[:images].to(device), DTYPES[run.resolved.precision])
        batch = Batch(
            activations=Activations(features=features), labels=labels[:images].to(device)
        )
        start = clock(device)
        learner.learn(batch, Share(step=next(steps), batch_size=images))
        return clock(device) - start

    return step


Backend = Callable[[PreparedRun, Sequence[Callback]], TrainResult]
"""Trains a run: `train_on_cluster` or `train_locally`."""


def completed(result: TrainResult) -> TrainResult:
    """Return the result of a training; where a signal stopped it, leave the program for that."""
    if result.stopped_by is not None:
        sys.exit(128 + result.stopped_by)
    return result


@dataclass(frozen=True, kw_only=True)
class SteadyState:
    """The steady state of one run."""

    batch_s: float
    """Seconds from one batch to the next."""
    busy: list[float]
    """Share of the time that each stage computes."""
    plan: Plan | None
    """Of a pipeline of actors."""


class BatchTimer(Callback):
    """Records when each batch of training leaves the last stage.

    Args:
        begin: called behind the first batch.
    """

    def __init__(self, begin: Callable[[], object]) -> None:
        self.begin = begin
        self.plans: list[Plan] = []
        self.left_s: list[float] = []
        self.reports: list[Sequence[Report]] = []

    def on_start(self, run: Run, plan: Plan) -> None:
        """Keep the plan."""
        self.plans.append(plan)

    def on_chunk_end(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """Add a batch."""
        if isinstance(command, Train):
            if not self.reports:
                self.begin()
            self.left_s.append(time.perf_counter())
            self.reports.append(reports)

    def steady_state(self, fill: int, steps: int) -> SteadyState:
        """Return the steady state of so many steps behind those that fill the pipeline."""
        end = fill + steps
        busy = []
        for stage in zip(*self.reports, strict=True):
            ends = [report.started_s + report.busy_s for report in stage]
            worked = sum(report.busy_s for report in stage[fill + 1 : end + 1])
            busy.append(worked / (ends[end] - ends[fill]))
        batch_s = (self.left_s[end] - self.left_s[fill]) / steps
        return SteadyState(batch_s=batch_s, busy=busy, plan=self.plans[0])


def train_steadily(
    command: BenchCommand,
    backend: Backend,
    steps: int,
    begin: Callable[[], object] = lambda: None,
    **options: Any,
) -> SteadyState:
    """Train on random images and return the steady state of so many batches, one in each chunk.

    Args:
        command: has the options of the training.
        backend: trains.
        steps: batches that count; others before them fill the pipeline, and behind them drain it.
        begin: called behind the first batch.
        options: of the training, over those of the command.
    """
    timer = BatchTimer(begin)
    with TemporaryDirectory(prefix="rayff-bench-") as folder:
        run_dir = f"{folder}/{Path(folder).name}"  # actors are named by it
        config = train_config(
            command, epochs=1, chunk=1, logger="none", run_dir=run_dir, **options
        )
        fill = (config.stages or len(config.replica_counts or (1,))) + 2
        completed(backend(random_run(config, fill + steps + fill), [timer]))
    return timer.steady_state(fill, steps)
