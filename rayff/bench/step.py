"""The command `rayff bench step`: Time one training step in this process, plain against fast rule.

First by layer and phase, next to the floor: torch's convolution and its weight gradient alone. A
share of the floor above 100% is faster than torch's convolution. Then whole steps, in turns. The
plain rule computes in float32, in which the fast rule is timed too. Last the augmentation of a
batch, beside a step of the fast rule, with which it overlaps in part on a GPU.

Examples:
  rayff bench step --arch tinycnn --batch-size 16 --repeats 2
  rayff bench step --arch resnet --save bench-step.json
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from rayff.bench.command import (
    BenchCommand,
    DeviceOptions,
    NetworkOptions,
    benchmark,
    train_config,
)
from rayff.bench.results import Results, in_turns
from rayff.bench.workload import conditions, random_run, training_step
from rayff.config.kernels import Kernels
from rayff.data.augmentation import augment, parse_augmentations
from rayff.data.images import ImageSet
from rayff.engine.local import resolve_for
from rayff.engine.prediction import pick_device
from rayff.engine.run import Run
from rayff.kernels.convolution import Convolution
from rayff.kernels.timing import once_s, seconds
from rayff.learning.analytic import AnalyticStep
from rayff.learning.layer import CWConv
from rayff.models.architecture import LayerSpec
from rayff.partition.profile import Conditions, random_batch, time_layer
from rayff.partition.roofline import least_s

_BATCHES = 20
"""Augmented one behind the other, so that the launches of one overlap with the work of another."""


@dataclass(frozen=True, kw_only=True)
class StepCommand(NetworkOptions, DeviceOptions, BenchCommand):
    """The options."""

    augment: str = "crop,flip,cutout,translate"
    """Augmentations to time, alone and together, as in training."""
    repeats: int = 5
    """Repetitions, of which the median is reported."""


def measure(command: StepCommand, results: Results) -> None:
    """Fill in the tables and figures."""
    device = pick_device(command.device)

    def resolved(**options: Any) -> Run:
        return resolve_for(random_run(train_config(command, **options)), device)

    plain = resolved(rule="plain", precision="fp32", kernels=None, autotune=False)
    fast = resolved()
    precision = fast.resolved.precision
    results.settings["precision"] = precision
    runs = {"plain, float32": plain, f"fast, {precision}": fast}
    if precision != "fp32":
        runs["fast, fp32"] = resolved(precision="fp32", kernels=None)
    title = f"{command.arch}, batch {command.batch_size}"
    _by_layer(results, title, conditions(plain, device), fast, command.repeats)
    if device.type == "cuda":
        _least(results, title, conditions(fast, device), fast)
    _whole_steps(results, title, runs, device, command.repeats)
    _augmentation(results, title, fast, device, command.repeats)


main = benchmark(StepCommand, measure)


def _by_layer(results: Results, title: str, plain: Conditions, run: Run, repeats: int) -> None:
    """Add the times of each layer; layers of one shape are timed once."""
    fast = conditions(run, plain.device)
    known: dict[str, dict[str, Any]] = {}
    rows = []
    for spec, kernels in zip(run.architecture.convolutions, run.resolved.kernels, strict=True):
        key = fast.key(spec, kernels)
        if key not in known:
            phases = time_layer(spec, fast, kernels, repeats=repeats)
            plain_s = time_layer(spec, plain, Kernels(), repeats=repeats).total_s
            floor = floor_s(spec, fast, repeats)
            known[key] = {
                "kernels": str(kernels),
                "plain_s": plain_s,
                "fast_s": phases.total_s,
                "ratio": plain_s / phases.total_s,
                **dataclasses.asdict(phases),
                "floor_s": floor,
                "floor_share": floor / phases.total_s,
            }
        rows.append({"layer": spec.index, **known[key]})
    results.figures["layers"] = rows
    results.table(f"{title}, by layer", rows, " ".join(rows[0]))


def floor_s(spec: LayerSpec, where: Conditions, repeats: int) -> float:
    """Return the seconds of torch's convolution and weight gradient alone."""
    layer = CWConv(spec, where.num_classes, dtype=where.dtype).to(where.device)
    layer = layer.to(memory_format=torch.channels_last)
    x, _ = random_batch(spec, where, where.recipe.batch_size)
    x = AnalyticStep(layer, x).convolution.x
    weight = layer.weight.detach().to(layer.dtype)

    def work() -> None:
        convolution = Convolution(spec, Kernels(), x, weight)
        convolution.weight_gradient(convolution.forward())

    return median(in_turns({"floor": lambda: seconds(work, where.device)}, repeats)["floor"])


def _least(results: Results, title: str, fast: Conditions, run: Run) -> None:
    """Add what the operations and bytes of a step take at rates that are measured here."""
    device = fast.device
    matrix = torch.randn(8192, 8192, dtype=fast.dtype, device=device)
    operations_per_s = 2 * 8192**3 / seconds(lambda: matrix @ matrix, device)
    memory = torch.zeros(2**30, dtype=torch.uint8, device=device)
    copy = torch.empty_like(memory)
    bytes_per_s = 2 * memory.numel() / seconds(lambda: copy.copy_(memory), device)
    rates = {"operations_per_s": operations_per_s, "bytes_per_s": bytes_per_s}
    images, size = run.recipe.batch_size, fast.dtype.itemsize
    layers = run.architecture.convolutions
    step_s = sum(least_s(spec, images, bytes_per_element=size, **rates) for spec in layers)
    least = {**rates, "step_s": step_s}
    results.figures["least"] = least
    results.table(f"{title}: the least that operations and bytes take", [least], " ".join(least))


def _whole_steps(
    results: Results, title: str, runs: dict[str, Run], device: torch.device, repeats: int
) -> None:
    images = runs["plain, float32"].recipe.batch_size
    works = {name: partial(training_step(run, device), images) for name, run in runs.items()}
    measured = in_turns(works, repeats)
    base = median(measured["plain, float32"])
    rows = [
        {
            "rule": name,
            "seconds": taken,
            "images_per_s": images / median(taken),
            "ratio": base / median(taken),
        }
        for name, taken in measured.items()
    ]
    results.figures["steps"] = rows
    results.table(f"{title}: whole steps, in turns", rows, "rule seconds images_per_s ratio")


def _augmentation(
    results: Results, title: str, run: Run, device: torch.device, repeats: int
) -> None:
    """Add the time that the augmentation of a batch takes, of several in a row."""
    listed = run.config.augment.split(",")
    train = run.data.train
    assert isinstance(train, ImageSet), "random_run makes them"
    images = torch.tensor(train.images, device=device)
    step_s = median(results.figures["steps"][1]["seconds"])

    def work(names: str) -> float:
        augmentations = parse_augmentations(names)

        def augment_batches() -> None:
            for step in range(_BATCHES):
                augment(images, augmentations, seed=0, step=step)

        return once_s(augment_batches, device) / _BATCHES

    works = {names: partial(work, names) for names in (*listed, ",".join(listed))}
    rows = [
        {"augmentation": names, "seconds": taken, "share_of_step": median(taken) / step_s}
        for names, taken in in_turns(works, repeats).items()
    ]
    results.figures["augmentation"] = rows
    results.table(f"{title}: augmentation of a batch", rows, " ".join(rows[0]))
