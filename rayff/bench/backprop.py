"""The command `rayff bench backprop`: Train by Forward-Forward and by backpropagation.

The same network, with a linear head for backpropagation, which is done in the best ordinary way
(bfloat16 where the device has units for it, channels last, compiled, fused AdamW, a cosine over
the same epochs), in this process, on the same data in the same order.

Prints images/s, and seconds of training until the validation accuracy reaches a target; evaluation
and compilation are not timed.

Examples:
  rayff bench backprop --task digits --arch tinycnn --target 90 --epochs 2
  rayff bench backprop --task mnist --data-dir DATA --target 97 --epochs 3
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rayff.baselines.model import Backpropagation
from rayff.bench.command import (
    BenchCommand,
    DeviceOptions,
    KernelOptions,
    benchmark,
    train_config,
)
from rayff.bench.results import Results
from rayff.config.errors import UserError
from rayff.data.augmentation import augment, parse_augmentations
from rayff.engine.commands import Evaluate, Train
from rayff.engine.local import local_pipeline, resolve_for
from rayff.engine.prediction import pick_device
from rayff.engine.preparation import prepare
from rayff.engine.run import Run
from rayff.kernels import native
from rayff.kernels.timing import once_s
from rayff.learning.chain import normalise
from rayff.learning.readout import best_window


@dataclass(frozen=True, kw_only=True)
class BackpropCommand(KernelOptions, DeviceOptions, BenchCommand):
    """The options."""

    arch: str = "tinycnn"
    """Network: {architectures}, or package.module:function."""
    task: str = "digits"
    """Data: {tasks}, a folder or URI of images, or package.module:function."""
    data_dir: str | None = None
    """Folder that holds the task's data."""
    limit: int | None = None
    """Images of each split to use at most. Default: all."""
    target: float = 95.0
    """Validation accuracy to reach, in percent."""
    epochs: int | None = None
    """Epochs at most. Default: the task's own, else the paper's."""
    augment: str = "none"
    """Augmentation of both methods' training images, as in training: none, {augmentations}."""
    batch_size: int | None = None
    """Images of a batch. Default: the task's own, else the paper's."""
    lr_backprop: float = 1e-3
    """Initial learning rate of backpropagation; Forward-Forward has its recipe's."""
    compile: bool = True
    """Compile backpropagation where there is a compiler."""
    checks: int = 4
    """How often an epoch the validation accuracy is taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.target <= 100:
            raise UserError(f"--target must be above 0 and at most 100, not {self.target}")
        if not (self.lr_backprop > 0 and math.isfinite(self.lr_backprop)):
            raise UserError(f"--lr-backprop must be above 0, not {self.lr_backprop}")


Learner = tuple[Callable[[Train], object], Callable[[], float]]
"""Trains on the batches of a command; returns the validation accuracy in percent."""


def measure(command: BackpropCommand, results: Results) -> None:
    """Fill in the table and figures."""
    device = pick_device(command.device)
    run = resolve_for(prepare(train_config(command), resume=False), device)
    recipe, num_images = run.recipe, len(run.splits["train"])
    results.settings["precision"] = run.resolved.precision
    learners: dict[str, Callable[[], Learner]] = {
        "forward-forward": partial(forward_forward, run, device),
        "backpropagation": partial(backpropagation, run, device, command),
    }
    rows = [
        {"method": name, **train(make(), run, command, device)} for name, make in learners.items()
    ]
    results.figures["methods"] = rows
    results.table(
        f"{command.arch} on {command.task}, {num_images} images, augmentation {command.augment}, "
        f"batch {recipe.batch_size}, at most {recipe.epochs} epochs, {run.resolved.precision}; "
        f"target {command.target:g}%",
        rows,
        "method images_per_s seconds_to_target best_accuracy seconds",
    )
    results.notes.append(
        "validation accuracy: of the best window of layers (Forward-Forward), of the head "
        "(backpropagation); a dash where the target was not reached; one run each"
    )


main = benchmark(BackpropCommand, measure)


def train(
    learner: Learner, run: Run, command: BackpropCommand, device: torch.device
) -> dict[str, Any]:
    """Train until the target is reached or the epochs are over."""
    learn, accuracy = learner
    per_check = -(-run.schedule(chunk=1).batches_per_epoch // command.checks)
    seconds, history, speeds = 0.0, [], []
    for chunk in run.schedule(per_check).commands():
        if not isinstance(chunk, Train):
            continue
        took_s = once_s(partial(learn, chunk), device)
        seconds += took_s
        speeds.append(sum(map(len, chunk.batches)) / took_s)
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


def forward_forward(run: Run, device: torch.device) -> Learner:
    """Return a stage of all layers."""
    pipeline = local_pipeline(run, (), device, None)
    first_epoch = takewhile(lambda c: c.epoch == 0, run.schedule(chunk=1).commands())
    evaluations = [c for c in first_epoch if isinstance(c, Evaluate) and c.split == "valid"]

    def learn(chunk: Train) -> None:
        list(pipeline.stream([chunk]))

    def accuracy() -> float:
        found = [reports[-1].hits for _, reports in pipeline.stream(evaluations)]
        hits = np.sum([each for each in found if each is not None], axis=0)
        return float(100 * hits[best_window(hits)] / len(run.splits["valid"]))

    return learn, accuracy


def backpropagation(run: Run, device: torch.device, command: BackpropCommand) -> Learner:
    """Return the network with a head, compiled and warmed up where there is a compiler."""
    recipe, schedule = run.recipe, run.schedule(chunk=1)
    model = Backpropagation(run.architecture, dropout=recipe.dropout)
    model = model.to(device).to(memory_format=torch.channels_last)
    compiles = command.compile and (device.type == "cuda" or native.missing() is None)
    forward = torch.compile(model, dynamic=False) if compiles else model
    decay = recipe.weight_decay
    optimizer = torch.optim.AdamW(
        model.parameters(), command.lr_backprop, weight_decay=decay, fused=True
    )
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, recipe.epochs * schedule.batches_per_epoch, command.lr_backprop / 10
    )
    bfloat16 = run.resolved.precision == "bf16"
    mixed = partial(torch.autocast, device.type, torch.bfloat16, enabled=bfloat16)
    images, labels = (
        {
            split: torch.tensor(getattr(part, name), device=device)
            for split, part in run.splits.items()
        }
        for name in ("images", "labels")
    )

    def enter(pixels: Tensor) -> Tensor:
        return normalise(pixels).to(memory_format=torch.channels_last)

    def find_gradients(pixels: Tensor, targets: Tensor) -> None:
        with mixed():
            logits = forward(enter(pixels))[0]
            loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]

    for size in {recipe.batch_size, len(images["train"]) % recipe.batch_size or 1}:  # compiles
        find_gradients(images["train"][:size], labels["train"][:size])

    augmentations, seed = parse_augmentations(command.augment), run.resolved.seed

    def learn(chunk: Train) -> None:
        model.train()
        for step, indices in enumerate(chunk.batches, start=chunk.step):
            where = torch.from_numpy(indices).to(device)
            pixels = augment(images["train"][where], augmentations, seed=seed, step=step)
            find_gradients(pixels, labels["train"][where])
            optimizer.step()
            cosine.step()

    @torch.no_grad()
    def accuracy() -> float:
        model.eval()
        with mixed():
            guessed = [
                model(enter(some))[0].argmax(dim=1) for some in torch.split(images["valid"], 256)
            ]
        return 100 * float((torch.cat(guessed) == labels["valid"]).float().mean())

    return learn, accuracy
