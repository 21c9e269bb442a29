"""python -m rayff.bench backprop: Forward-Forward beside backpropagation of the same network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rayff.baselines.model import Backpropagation
from rayff.bench.outcome import Outcome, at_least_one, check_save, median
from rayff.cli import parse
from rayff.config.errors import UserError
from rayff.config.recipe import Recipe, recipe
from rayff.data.images import ImageSet, Split
from rayff.data.order import batches, epoch_order
from rayff.data.tasks import TaskData, load_task, task_recipe
from rayff.engine.commands import Evaluate, Indices, Train
from rayff.engine.learner import StageSpec
from rayff.engine.stage import local_stage
from rayff.kernels import native
from rayff.kernels.precision import DTYPES, default_precision
from rayff.learning.chain import normalise
from rayff.learning.readout import best_window
from rayff.models.zoo import architecture
from rayff.partition.profile import Conditions, clock, time_layers

DESCRIPTION = """\
Compare Forward-Forward with backpropagation: images/s and seconds to an accuracy.

Examples:
  rayff bench backprop --task digits --arch tinycnn --target 90 --epochs 2
  rayff bench backprop --task mnist --data-dir DATA --target 97 --epochs 3

Notes:
- Both train the same network in this process, on the same batches.
- Backpropagation adds a linear head and uses bfloat16 where the device has
  units for it, channels last, torch.compile, fused AdamW and a cosine schedule.
- Times exclude evaluation and compilation.
"""


@dataclass(frozen=True, kw_only=True)
class BackpropCommand:
    """The options."""

    arch: str = "tinycnn"
    """Architecture: {architectures}."""
    task: str = "digits"
    """Data set: {tasks}, or a folder of Parquet files."""
    data_dir: str | None = None
    """Folder of the data set."""
    limit: int | None = None
    """Use at most this many images of each split. Default: all."""
    target: float = 95.0
    """Validation accuracy to reach, in percent."""
    epochs: int | None = None
    """Maximum number of epochs. Default: the task's own, else the paper's."""
    batch_size: int | None = None
    """Images per batch. Default: the task's own, else the paper's."""
    lr_backprop: float = 1e-3
    """Initial learning rate of backpropagation; Forward-Forward uses its recipe's."""
    compile: bool = True
    """Compile backpropagation where there is a compiler."""
    checks: int = 4
    """Evaluations on the validation images per epoch."""
    threads: int | None = None
    """Torch threads. Default: one per core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto is a GPU where there is one."""
    save: str | None = None
    """JSON file to write the figures to."""


Learner = tuple[Callable[[int, float, Indices], None], Callable[[], float]]
"""Learns from a batch, given its number, the share of training done and the positions of its
images; and says the validation accuracy in percent."""


def main(args: Sequence[str]) -> int:
    """Train both, print, and save where asked."""
    command = parse(
        BackpropCommand, module="rayff.bench backprop", description=DESCRIPTION, args=args
    )
    at_least_one(checks=command.checks)
    if command.limit is not None:
        at_least_one(limit=command.limit)
    if not 0 < command.target <= 100:
        raise UserError(f"--target must be above 0 and at most 100, not {command.target}")
    if not (command.lr_backprop > 0 and math.isfinite(command.lr_backprop)):
        raise UserError(f"--lr-backprop must be above 0, not {command.lr_backprop}")
    check_save(command.save)
    if command.threads is not None:
        at_least_one(threads=command.threads)
        torch.set_num_threads(command.threads)
    from rayff.engine.prediction import pick_device

    outcome = measure(command, pick_device(command.device))
    outcome.show()
    outcome.save(command.save)
    return 0


def measure(command: BackpropCommand, device: torch.device) -> Outcome:
    """Return the benchmark's tables and figures."""
    own = {"epochs": command.epochs, "batch_size": command.batch_size}
    asked = {name: value for name, value in own.items() if value is not None}
    at_least_one(**asked)
    settings = recipe(command.arch, {**task_recipe(command.task), **asked})
    folder = None if command.data_dir is None else Path(command.data_dir)
    data = load_task(command.task, data_dir=folder)
    splits = {split: images.first(command.limit) for split, images in data.splits.items()}
    precision = default_precision(device)
    outcome = Outcome("backprop", {**dataclasses.asdict(command), "precision": precision})
    learners: dict[str, Callable[[], Learner]] = {
        "forward-forward": lambda: forward_forward(
            command.arch, data, splits, settings, device, precision
        ),
        "backpropagation": lambda: backpropagation(
            command, data, splits, settings, device, precision
        ),
    }
    table = outcome.table(
        f"{command.arch} on {command.task}, {len(splits['train'])} images, batch "
        f"{settings.batch_size}, at most {settings.epochs} epochs, {precision}",
        *("method", "images/s", f"seconds to {command.target:g}% validation"),
        *("best validation", "seconds of training"),
    )
    rows = []
    for name, make in learners.items():
        row = {"method": name, **train(make(), len(splits["train"]), settings, command, device)}
        reached = row["seconds_to_target"]
        table.add_row(
            name,
            f"{row['images_per_s']:.1f}",
            "not reached" if reached is None else f"{reached:.1f}",
            f"{row['best_accuracy']:.2f}%",
            f"{row['seconds']:.1f}",
        )
        rows.append(row)
    outcome.figures["methods"] = rows
    outcome.notes.append(
        "validation accuracy: of the best window of layers (Forward-Forward), of the head "
        "(backpropagation); one run each"
    )
    return outcome


def train(
    learner: Learner,
    num_images: int,
    settings: Recipe,
    command: BackpropCommand,
    device: torch.device,
) -> dict[str, Any]:
    """Train until the target is reached or the epochs are over."""
    learn, accuracy = learner
    todo = [
        indices
        for epoch in range(settings.epochs)
        for indices in batches(epoch_order(num_images, seed=0, epoch=epoch), settings.batch_size)
    ]
    per_check = max(1, len(todo) // (settings.epochs * command.checks))
    seconds, history, speeds = 0.0, [], []
    for first in range(0, len(todo), per_check):
        start = clock(device)
        some = todo[first : first + per_check]
        for step, indices in enumerate(some, start=first):
            learn(step, step / len(todo), indices)
        took = clock(device) - start
        seconds += took
        speeds.append(sum(map(len, some)) / took)
        history.append({"seconds": seconds, "accuracy": accuracy()})
        if history[-1]["accuracy"] >= command.target:
            break
    reached = history[-1]["accuracy"] >= command.target
    return {
        "images_per_s": median(speeds),
        "seconds_to_target": seconds if reached else None,
        "best_accuracy": max(entry["accuracy"] for entry in history),
        "seconds": seconds,
        "history": history,
    }


def forward_forward(
    arch: str,
    data: TaskData,
    splits: dict[Split, ImageSet],
    settings: Recipe,
    device: torch.device,
    precision: str,
) -> Learner:
    """Return a stage of all layers, with the fast rule."""
    network = architecture(arch, num_classes=data.num_classes, image_channels=data.image_channels)
    conditions = Conditions(
        recipe=settings, num_classes=data.num_classes, device=device, dtype=DTYPES[precision]
    )
    spec = StageSpec(
        architecture=network,
        is_last=True,
        recipe=settings,
        seed=0,
        precision=precision,
        kernels=tuple(layer.kernels for layer in time_layers(network, conditions)),
    )
    stage = local_stage(spec, device, splits)

    def learn(step: int, done: float, indices: Indices) -> None:
        epoch = int(done * settings.epochs)
        lr = _cosine(settings.lr, settings.lr_min, epoch / settings.epochs)
        stage.handle(Train(epoch=epoch, step=step, lr=lr, batches=(indices,)), None)

    def accuracy() -> float:
        positions = np.arange(len(splits["valid"]))
        command = Evaluate(epoch=0, split="valid", batches=tuple(batches(positions, 256)))
        _, report = stage.handle(command, None)
        assert report.hits is not None, "the last stage counts the hits"
        return float(100 * report.hits[best_window(report.hits)] / len(positions))

    return learn, accuracy


def backpropagation(
    command: BackpropCommand,
    data: TaskData,
    splits: dict[Split, ImageSet],
    settings: Recipe,
    device: torch.device,
    precision: str,
) -> Learner:
    """Return the network with a head, compiled and warmed up where a compiler is there."""
    network = architecture(
        command.arch, num_classes=data.num_classes, image_channels=data.image_channels
    )
    lr = command.lr_backprop
    model = Backpropagation(network, dropout=settings.dropout)
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr, weight_decay=settings.weight_decay, fused=True
    )
    images = {
        split: (torch.tensor(part.images, device=device), torch.tensor(part.labels, device=device))
        for split, part in splits.items()
    }
    compiles = command.compile and (device.type == "cuda" or native.missing() is None)
    forward: Callable[[Tensor], Tensor] = (
        torch.compile(model, dynamic=False) if compiles else model
    )

    def mixed() -> AbstractContextManager[Any]:
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    def enter(pixels: Tensor) -> Tensor:
        return normalise(pixels).to(memory_format=torch.channels_last)

    def step_with(x: Tensor, labels: Tensor) -> None:
        with mixed():
            loss = F.cross_entropy(forward(x)[0], labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]

    pixels, labels = images["train"]
    for size in {settings.batch_size, len(pixels) % settings.batch_size or 1}:  # compiles
        step_with(enter(pixels[:size]), labels[:size])

    def learn(step: int, done: float, indices: Indices) -> None:
        model.train()
        where = torch.from_numpy(indices).to(device)
        step_with(enter(pixels[where]), labels[where])
        for group in optimizer.param_groups:
            group["lr"] = _cosine(lr, lr / 10, done)
        optimizer.step()

    @torch.no_grad()
    def accuracy() -> float:
        model.eval()
        valid, right = images["valid"], 0
        for start in range(0, len(valid[0]), 256):
            some = slice(start, start + 256)
            with mixed():
                guessed = model(enter(valid[0][some]))[0].argmax(dim=1)
            right += int((guessed == valid[1][some]).sum())
        return 100 * right / len(valid[0])

    return learn, accuracy


def _cosine(begin: float, end: float, done: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * done)) / 2
