"""The command `rayff bench memory`: Measure the peak memory of a training step of deep networks.

By Forward-Forward, and by backpropagation of the same network, plain and with activation
checkpointing by block. Forward-Forward needs the memory of its largest layer, whatever the depth;
that layer's size is printed as well.

Each case runs in a process of its own. A step with one image makes network, optimizer and
gradients first; what a step with the batch needs on top of them at its peak is the memory of its
activations: on a CPU by the system's count of resident pages (Linux), libraries included, on a GPU
by the allocator's.

Examples:
  rayff bench memory --arch tinycnn --batch-size 16
  rayff bench memory --arch resnet,resnet34,resnet101 --save bench-memory.json
"""

from __future__ import annotations

import math
import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from rayff.baselines.model import Backpropagation
from rayff.bench.command import BenchCommand, benchmark, train_config
from rayff.bench.results import Results
from rayff.bench.workload import random_run, training_step
from rayff.config.errors import UserError
from rayff.config.train_config import Device, TrainConfig
from rayff.engine.local import resolve_for
from rayff.engine.prediction import pick_device
from rayff.engine.run import PreparedRun
from rayff.models.architecture import Architecture

METHODS = ("forward-forward", "backpropagation", "checkpointing")


@dataclass(frozen=True, kw_only=True)
class MemoryCommand(BenchCommand):
    """The options."""

    arch: str = "resnet,resnet34,resnet101"
    """Networks, with commas between them: {architectures}, or package.module:function. The others
    are compared with the first."""
    batch_size: int = 32
    """Images of a step."""
    kernels: str = "conv"
    """Convolution backends of the fast rule. All but conv need extra memory: up to 32 MiB of tiles
    and the transformed filters (winograd), the unfolded input (unfold), or a few copies of the
    weights (amx)."""
    device: Device = "auto"
    """Device; auto is a GPU where there is one."""


def measure(command: MemoryCommand, results: Results) -> None:
    """Fill in the table and figures."""
    device = pick_device(command.device)
    if device.type == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise UserError("the peak of a process can be measured on Linux alone; use --device cuda")
    options: dict[str, Any] = {"device": device.type, "precision": "fp32"}
    configs = [train_config(command, arch=arch, **options) for arch in command.arch.split(",")]
    runs = [resolve_for(random_run(config), device) for config in configs]
    firsts: dict[str, float] = {}
    rows = []
    for run in runs:
        network = run.architecture
        for method in METHODS:
            peak, seconds = in_own_process(method, run.config)
            # Forward-Forward frees each layer's gradient, so it holds weights and two moments
            state = 4 * network.num_weights * (3 if method == "forward-forward" else 4)
            rows.append(
                {
                    "network": run.config.arch,
                    "layers": len(network),
                    "method": method,
                    "activation_bytes": peak,
                    "against_first": peak / firsts.setdefault(method, peak),
                    "largest_layer_bytes": 4 * command.batch_size * largest_layer(network),
                    "state_bytes": state,
                    "seconds": seconds,
                }
            )
    results.figures["cases"] = rows
    results.table(
        f"batch {command.batch_size}: peak memory of a step",
        rows,
        "network layers method activation_bytes against_first largest_layer_bytes state_bytes "
        "seconds",
    )
    results.notes.append(
        "largest layer: its input, shortcut and output, in float32; state: weights, gradients and "
        "optimizer"
    )


main = benchmark(MemoryCommand, measure)


def largest_layer(network: Architecture) -> int:
    """Return the elements that enter, bypass and leave the largest layer, for an image."""
    return max(
        network.boundary_elements(position) + math.prod(spec.out_shape)
        for position, spec in enumerate(network.layers)
    )


def in_own_process(method: str, config: TrainConfig) -> tuple[float, float]:
    """Return the peak bytes of a step's activations and its seconds."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        try:
            return pool.submit(_case, method, config).result()
        except BrokenProcessPool:
            raise UserError(
                f"{method} of {config.arch} was killed, perhaps for lack of memory; try a smaller "
                "--batch-size"
            ) from None


def _case(method: str, config: TrainConfig) -> tuple[float, float]:
    device, prepared = pick_device(config.device), random_run(config)
    step: Callable[[int], object]
    if method == "forward-forward":
        step = training_step(resolve_for(prepared, device), device)
    else:
        step = _backpropagation(prepared, device, checkpointing=method == "checkpointing")
    step(1)
    before = _reset_peak(device)
    start = time.perf_counter()
    step(prepared.recipe.batch_size)
    seconds = time.perf_counter() - start
    return max(0.0, _peak(device) - before), seconds


def _backpropagation(
    prepared: PreparedRun, device: torch.device, *, checkpointing: bool
) -> Callable[[int], object]:
    network, dropout = prepared.architecture, prepared.recipe.dropout
    model = Backpropagation(network, dropout=dropout, checkpointing=checkpointing)
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)

    def step(images: int) -> None:
        x = torch.randn(images, *network.image_shape, device=device)
        labels = torch.arange(images, device=device) % network.num_classes
        optimizer.zero_grad(set_to_none=False)  # gradients are no activations
        loss = F.cross_entropy(model(x.to(memory_format=torch.channels_last))[0], labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _reset_peak(device: torch.device) -> float:
    """Forget the peak so far; return the bytes in use."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.memory_allocated(device))
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device))
    return _status("VmHWM")


def _status(name: str) -> float:
    """Return a count of this process, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "Linux has it"
    return 1024.0 * int(found[1])
