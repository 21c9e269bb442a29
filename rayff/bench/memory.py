"""python -m rayff.bench memory: the peak of a training step, against backpropagation.

Each case runs in a process of its own. Network, optimizer and gradients are there before the
clock runs, made by a step with one image; what a step with the batch needs on top of them at its
peak is the memory of its activations. On a CPU it is the system's own count of resident pages
(Linux), so it contains what libraries take for themselves; on a GPU it is the allocator's.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from rayff.baselines.model import Backpropagation
from rayff.bench.outcome import Outcome, at_least_one, check_save
from rayff.bench.step import whole_step
from rayff.cli import parse
from rayff.config.errors import UserError
from rayff.config.kernels import Kernels, parse_kernels
from rayff.config.recipe import recipe
from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture
from rayff.partition.profile import Conditions

DESCRIPTION = """\
Measure the peak memory of a training step: Forward-Forward against backpropagation.

Examples:
  rayff bench memory --arch tinycnn --batch-size 16
  rayff bench memory --arch resnet,resnet34,resnet101 --save bench-memory.json

Notes:
- Backpropagation trains the same network, without and with activation
  checkpointing per block.
- Forward-Forward needs the memory of its largest layer, whatever the depth;
  that layer's size is printed as well.
"""

METHODS = ("forward-forward", "backpropagation", "checkpointing")


@dataclass(frozen=True, kw_only=True)
class MemoryCommand:
    """The options."""

    arch: str = "resnet,resnet34,resnet101"
    """Architectures with commas between them, of {architectures}; the others are compared with the
    first."""
    batch_size: int = 32
    """Images per step."""
    kernels: str = "conv"
    """Kernels of the fast rule, of {kernels}. All but conv need extra memory: up to 32 MiB of
    tiles and the transformed filters (winograd), the unfolded input (unfold), or a few copies of
    the weights (amx)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto is a GPU where there is one."""
    save: str | None = None
    """JSON file to write the figures to."""


def main(args: Sequence[str]) -> int:
    """Measure, print, and save where asked."""
    command = parse(MemoryCommand, module="rayff.bench memory", description=DESCRIPTION, args=args)
    at_least_one(batch_size=command.batch_size)
    check_save(command.save)
    from rayff.engine.prediction import pick_device

    device = pick_device(command.device).type
    if device == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise UserError("the peak of a process can be measured on Linux alone; use --device cuda")
    outcome = measure(command, device)
    outcome.show()
    outcome.save(command.save)
    return 0


def measure(command: MemoryCommand, device: str) -> Outcome:
    """Return the benchmark's tables and figures."""
    networks = {
        name: architecture(name, num_classes=10, image_channels=3)
        for name in command.arch.split(",")
    }
    for network in networks.values():
        parse_kernels(command.kernels, len(network))
    outcome = Outcome("memory", dataclasses.asdict(command))
    table = outcome.table(
        f"batch {command.batch_size}: peak memory of a step in MiB, beside the state",
        *("network", "layers", "method", "activations", "against its first", "largest layer"),
        *("weights, gradients, optimizer", "seconds"),
    )
    firsts: dict[str, float] = {}
    rows = []
    for name, network in networks.items():
        largest = 4 * command.batch_size * largest_layer(network)
        for method in METHODS:
            peak, seconds = in_its_own_process(method, network, command, device)
            firsts.setdefault(method, peak)
            # Forward-Forward frees each layer's gradient, so it holds weights and two moments
            state = 4 * network.num_weights * (3 if method == "forward-forward" else 4)
            table.add_row(
                name,
                str(len(network)),
                method,
                f"{peak / 2**20:.0f}",
                f"{peak / firsts[method]:.2f}x",
                f"{largest / 2**20:.0f}",
                f"{state / 2**20:.0f}",
                f"{seconds:.1f}",
            )
            rows.append(
                {
                    "network": name,
                    "layers": len(network),
                    "method": method,
                    "activation_bytes": peak,
                    "against_first": peak / firsts[method],
                    "largest_layer_bytes": largest,
                    "state_bytes": state,
                    "seconds": seconds,
                }
            )
    outcome.figures["cases"] = rows
    outcome.notes.append(
        "largest layer: its input, a shortcut beside it and its output, in float32"
    )
    return outcome


def largest_layer(network: Architecture) -> int:
    """Return the elements that enter, bypass and leave the largest layer, for an image."""
    return max(
        network.boundary_elements(position) + spec.out_channels * spec.out_size**2
        for position, spec in enumerate(network.layers)
    )


def in_its_own_process(
    method: str, network: Architecture, command: MemoryCommand, device: str
) -> tuple[float, float]:
    """Return the peak bytes of a step's activations and its seconds."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_case, args=(sender, method, network, command, device))
    process.start()
    sender.close()
    try:
        result: tuple[float, float] = receiver.recv()
    except EOFError:
        raise UserError(
            f"{method} of {network.name} did not come to its end, for want of memory perhaps; try "
            "a smaller --batch-size"
        ) from None
    finally:
        process.join()
    return result


def _case(
    sender: Any, method: str, network: Architecture, command: MemoryCommand, device: str
) -> None:
    where = torch.device(device)
    settings = recipe(network.name, {"batch_size": command.batch_size})
    if method == "forward-forward":
        step = _forward_forward(network, settings, where, command.kernels)
    else:
        step = _backpropagation(network, settings.dropout, where, method == "checkpointing")
    step(1)
    before = _reset_peak(where)
    start = time.perf_counter()
    step(command.batch_size)
    seconds = time.perf_counter() - start
    sender.send((max(0.0, _peak(where) - before), seconds))


def _forward_forward(
    network: Architecture, settings: Any, device: torch.device, kernels: str
) -> Callable[[int], object]:
    chosen: tuple[Kernels, ...] = parse_kernels(kernels, len(network))
    conditions = Conditions(recipe=settings, num_classes=10, device=device, dtype=torch.float32)
    return whole_step(network, conditions, chosen)


def _backpropagation(
    network: Architecture, dropout: float, device: torch.device, checkpointing: bool
) -> Callable[[int], object]:
    model = Backpropagation(network, dropout=dropout, checkpointing=checkpointing)
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)

    def step(images: int) -> None:
        x = torch.randn(images, network.image_channels, 32, 32, device=device)
        labels = torch.arange(images, device=device) % 10
        optimizer.zero_grad(set_to_none=False)  # they are no activations
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
    """Return a count of the process's own, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "Linux tells it"
    return 1024.0 * int(found[1])
