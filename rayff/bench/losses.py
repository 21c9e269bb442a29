"""The command `rayff bench losses`: Time a training step with each local loss in this process.

Whole steps of all layers on random images, in turns; the ratio is to `goodness`, whose passes and
loss are one kernel. Losses of the map, and those of a user's own, are timed with the plain rule
where that is the one they have.

Examples:
  rayff bench losses --arch tinycnn --batch-size 16 --repeats 2
  rayff bench losses --arch resnet --losses linear,linear_similarity --save bench-losses.json
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import median

from rayff.bench.command import (
    BenchCommand,
    DeviceOptions,
    NetworkOptions,
    benchmark,
    train_config,
)
from rayff.bench.results import Results, in_turns
from rayff.bench.workload import random_run, training_step
from rayff.config.registries import LOSSES
from rayff.engine.local import resolve_for
from rayff.engine.prediction import pick_device

BASE = "goodness"


@dataclass(frozen=True, kw_only=True)
class LossesCommand(NetworkOptions, DeviceOptions, BenchCommand):
    """The options."""

    losses: str = ",".join(LOSSES.names)
    """Local losses, with commas between them; goodness is always timed."""
    repeats: int = 5
    """Repetitions, of which the median is reported."""


def measure(command: LossesCommand, results: Results) -> None:
    """Fill in the table and the figures."""
    device = pick_device(command.device)
    runs = {
        loss: resolve_for(random_run(train_config(command, loss=loss)), device)
        for loss in dict.fromkeys((BASE, *command.losses.split(",")))
    }
    images = command.batch_size
    works = {loss: partial(training_step(run, device), images) for loss, run in runs.items()}
    measured = in_turns(works, command.repeats)
    base = median(measured[BASE])
    rows = [
        {
            "loss": loss,
            "rule": runs[loss].resolved.rule,
            "seconds": taken,
            "images_per_s": images / median(taken),
            "ratio": median(taken) / base,
        }
        for loss, taken in measured.items()
    ]
    results.settings["precision"] = runs[BASE].resolved.precision
    results.figures["losses"] = rows
    title = f"{command.arch}, batch {images}: whole steps by loss, in turns"
    results.table(title, rows, "loss rule seconds images_per_s ratio")


main = benchmark(LossesCommand, measure)
