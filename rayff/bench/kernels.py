"""The command `rayff bench kernels`: Compare the table of convolution backends with autotuning.

For each architecture, the seconds of a training step with the kernels of the table and with those
that a timing chooses, in turns. Exit code 0 if a step by the table takes at most 5% longer than
the other, else 1.

With --update, time the backends for each shape of layer, of colour and of grey images, and write
the fastest pair of forward pass and weight gradient into the table, as rows of this machine's
device class. They replace rows of the same shape; rows of another machine or version of torch are
dropped. A large layer is timed with fewer images than a batch, and its row says with how many. On
a CPU, every other core does the same work at the same time, as the stages of a pipeline do: they
share its memory and caches.

Both take up to twenty minutes on two cores, on which nothing else should compute.

A machine with AVX2 alone (device class cpu) can be emulated on any later one. The variables keep
PyTorch's own kernels, oneDNN, MKL and the C++ compiler from later instructions; caches, clock rate
and memory stay those of the machine at hand, and the table says so:
  ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \\
  RAYFF_CXXFLAGS=-march=x86-64-v3 rayff bench kernels --update

Examples:
  rayff bench kernels
  rayff bench kernels --arch resnet --batch-size 128
  rayff bench kernels --update
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, TypeVar

import torch
from joblib import cpu_count
from rich.console import Console
from rich.progress import track

from rayff.bench.command import BenchCommand, DeviceOptions, benchmark, train_config
from rayff.bench.results import Results, in_turns
from rayff.bench.workload import NUM_CLASSES, random_run, training_step
from rayff.config.errors import UserError
from rayff.config.kernels import Kernels, format_kernels
from rayff.config.train_config import Precision
from rayff.engine.local import resolve_for
from rayff.engine.prediction import pick_device
from rayff.kernels.autotune import Shape, fastest_kernels, shape_of, timed_images
from rayff.kernels.device_class import device_class
from rayff.kernels.precision import DTYPES, default_precision
from rayff.kernels.table import PATH, read_table, table_kernels, write_table
from rayff.models.architecture import Architecture
from rayff.models.zoo import CONVOLUTIONAL, architecture

T = TypeVar("T")

BATCH_SIZES = (128, 16)
TOLERANCE = 1.05
_MAX_STEP_PRODUCTS = 5e11
"""Multiply-adds of the forward pass of a step that is timed on a CPU: a few seconds of a core."""


@dataclass(frozen=True, kw_only=True)
class KernelsCommand(DeviceOptions, BenchCommand):
    """The options."""

    update: bool = False
    """Write the choices into the table instead of comparing them with it."""
    arch: str = ",".join(CONVOLUTIONAL)
    """Networks of convolutions, with commas between them, or package.module:function."""
    batch_size: tuple[int, ...] | None = None
    """Images of a batch, with commas between several sizes. Default: 128,16."""
    precision: Precision | None = None
    """Number format. Default: with --update fp32, and bf16 where the device has units for it; else
    as in training."""
    threads: int | None = 1
    """Torch threads."""
    repeats: int = 5
    """Rounds in which the backends, or the steps, take turns, and of which the median counts."""


def measure(command: KernelsCommand, results: Results) -> None:
    """Fill in the table and figures."""
    device = pick_device(command.device)
    if command.update:
        update(command, results, device)
    else:
        compare(command, results, device)


main = benchmark(KernelsCommand, measure)


def update(command: KernelsCommand, results: Results, device: torch.device) -> None:
    """Time every shape once, and write the fastest kernels into the table.

    Raises:
        UserError: the file of the table cannot be written.
    """
    if not os.access(PATH, os.W_OK):
        raise UserError(f"{PATH} cannot be written; install rayff from a clone of your own")
    classes, own = read_table(PATH), device_class(device)
    source = {
        "machine": results.machine["gpu" if device.type == "cuda" else "processor"],
        "torch": results.machine["torch"],
        "threads": results.machine["threads"],
    }
    entry = classes.get(own, {})
    if any(entry.get(name) != value for name, value in source.items()):
        entry = {}
    todo = {
        (timed_images(spec, images, device), shape_of(spec)): spec
        for arch in command.arch.split(",")
        for channels in (3, 1)
        for images in command.batch_size or BATCH_SIZES
        for spec in network(arch, channels).convolutions
    }
    rows = []
    for precision in (command.precision,) if command.precision else formats(device):
        name = str(DTYPES[precision]).removeprefix("torch.")
        known = {(images, tuple(shape)): kernels for images, shape, kernels in entry.get(name, [])}
        with neighbours(device) as beside:
            for (images, shape), spec in progress(todo.items(), f"{own}, {name}"):
                work = (spec, images, device, DTYPES[precision], command.repeats)
                others_done = beside(work)
                best = str(fastest_kernels(*work))
                wait(others_done)
                known[images, shape] = best
                rows.append({"format": name, "images": images, "shape": shape, "kernels": best})
        formatted = [[images, list(shape), best] for (images, shape), best in known.items()]
        others = {key: value for key, value in entry.items() if isinstance(value, list)}
        date = time.strftime("%Y-%m-%d")
        entry = classes[own] = {**source, "date": date, **others, name: formatted}
        write_table(PATH, classes)
    results.figures["rows"] = rows
    results.table(f"{own}, written to {PATH}", rows, "format images shape kernels")


@contextmanager
def neighbours(device: torch.device) -> Iterator[Callable[[tuple[Any, ...]], list[Future[Any]]]]:
    """Give a function that lets every other core, of one thread each, time the same backends."""
    others = cpu_count() // torch.get_num_threads() - 1 if device.type == "cpu" else 0
    if others < 1:
        yield lambda work: []
        return
    threads = torch.get_num_threads()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(others, spawn, torch.set_num_threads, (threads,)) as pool:
        yield lambda work: [pool.submit(fastest_kernels, *work) for _ in range(others)]


def compare(command: KernelsCommand, results: Results, device: torch.device) -> None:
    """Time training steps by the table and by autotuning, in turns."""
    precision = command.precision or formats(device)[-1]
    dtype, own = DTYPES[precision], device_class(device)
    pairs = (
        (arch, step_images(network(arch), images, device))
        for arch in command.arch.split(",")
        for images in command.batch_size or BATCH_SIZES
    )
    chosen: dict[tuple[int, Shape], Kernels] = {}
    rows: list[dict[str, Any]] = []
    for arch, images in progress(dict.fromkeys(pairs), "comparing"):
        made = network(arch)
        tuned = []
        for spec in made.convolutions:
            key = timed_images(spec, images, device), shape_of(spec)
            if key not in chosen:
                chosen[key] = fastest_kernels(spec, images, device, dtype, command.repeats)
            tuned.append(chosen[key])
        choices = {
            "table": format_kernels(table_kernels(made, images, own, dtype)),
            "autotuned": format_kernels(tuple(tuned)),
        }
        works = {}
        for name in choices if len(set(choices.values())) > 1 else ("table",):
            options = {"arch": arch, "batch_size": images, "precision": precision}
            config = train_config(command, **options, kernels=choices[name])
            step = training_step(resolve_for(random_run(config), device), device)
            works[name] = partial(step, images)
        measured = in_turns(works, command.repeats)
        table_s, autotuned_s = measured["table"], measured.get("autotuned", measured["table"])
        layers = zip(*(text.split(",") for text in choices.values()), strict=True)
        rows.append(
            {
                "network": arch,
                "batch_size": images,
                **choices,
                "layers_that_differ": sum(a != b for a, b in layers),
                "table_s": table_s,
                "autotuned_s": autotuned_s,
                "ratio": median(table_s) / median(autotuned_s),
            }
        )
    results.figures["steps"] = rows
    results.table(
        f"{own}, {precision}: seconds of a step",
        rows,
        "network batch_size layers_that_differ table_s autotuned_s ratio",
    )
    worst = max(float(row["ratio"]) for row in rows)
    results.passed = worst <= TOLERANCE
    results.notes.append(
        f"{'passed' if results.passed else 'failed'}: a step by the table takes at most "
        f"{worst:.3f} times the seconds of an autotuned one; {TOLERANCE} is allowed"
    )


def network(arch: str, image_channels: int = 3) -> Architecture:
    """Return an architecture at its default width."""
    return architecture(arch, num_classes=NUM_CLASSES, image_channels=image_channels)


def formats(device: torch.device) -> tuple[Precision, ...]:
    """Return the number formats that a device is made for."""
    best = default_precision(device)
    return ("fp32",) if best == "fp32" or device_class(device) == "cpu" else ("fp32", best)


def step_images(made: Architecture, images: int, device: torch.device) -> int:
    """Return the batch size of a step that is timed: a CPU takes long for a large one."""
    products = sum(layer.num_products for layer in made.layers)
    while device.type == "cpu" and images > 16 and images * products > _MAX_STEP_PRODUCTS:
        images //= 2
    return images


def progress(items: Collection[T], what: str) -> Iterable[T]:
    """Return the items, with a progress bar on stderr."""
    return track(items, what, console=Console(stderr=True), transient=True)
