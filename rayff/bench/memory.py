"""The command `rayff bench memory`: Measure the peak memory of a training step of deep networks.

By local losses, and by backpropagation of the same network, plain and with activation
checkpointing by block. Local losses need the memory of the largest layer, whatever the depth: each
layer is measured alone as well.

Each case runs in a process of its own. A step with one image makes network and optimizer first;
what a step with the batch needs on top of them at its peak is the memory of its activations and
gradients: on a CPU by the system's count of resident pages (Linux), libraries included, on a GPU
by the allocator's.

Examples:
  rayff bench memory --arch tinycnn --batch-size 16
  rayff bench memory --arch resnet,resnet34,resnet101 --save bench-memory.json
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rayff.bench.command import BenchCommand, benchmark, train_config
from rayff.bench.methods import BACKPROPAGATION, learner_options, parse_methods, run_options
from rayff.bench.process import check_peaks, in_own_process, peak_bytes
from rayff.bench.results import Results
from rayff.bench.workload import random_run, training_step
from rayff.config.train_config import Device, TrainConfig
from rayff.engine.learner import LocalLearner, StageSpec
from rayff.engine.local import resolve_for
from rayff.engine.prediction import pick_device
from rayff.engine.run import Run
from rayff.kernels.precision import DTYPES
from rayff.learning.chain import Activations
from rayff.learning.generators import Share
from rayff.learning.rules import memory_format
from rayff.models.architecture import Architecture


@dataclass(frozen=True, kw_only=True)
class MemoryCommand(BenchCommand):
    """The options."""

    arch: str = "resnet,resnet34,resnet101"
    """Networks, with commas between them: {architectures}, or package.module:function. The others
    are compared with the first."""
    methods: str = "goodness,linear,backpropagation,checkpointing"
    """Local losses ({losses}, or package.module:Class), backpropagation, checkpointing (of the
    activations, by block) and accumulation (of the gradients of four parts of the batch), with
    commas between them."""
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
    check_peaks(device)
    methods = parse_methods(command.methods)
    configs = {
        (arch, method): _config(command, device, arch, method)
        for arch in command.arch.split(",")
        for method in methods
    }
    networks = {
        case: resolve_for(random_run(config), device).architecture
        for case, config in configs.items()
    }
    firsts: dict[str, float] = {}
    rows = []
    for (arch, method), config in configs.items():
        what, network = f"{method} of {arch}", networks[arch, method]
        peak, seconds = in_own_process(what, _step, method, config, keep_freed=False)
        alone = None
        if method not in BACKPROPAGATION:
            alone = in_own_process(f"a layer of {what}", _largest_layer, config, keep_freed=False)
        rows.append(
            {
                "network": arch,
                "layers": len(network),
                "method": method,
                "step_bytes": peak,
                "against_first": peak / firsts.setdefault(method, peak),
                "largest_layer_bytes": alone and alone[0],
                "largest_layer": alone and alone[1],
                "against_largest_layer": alone and peak / alone[0],
                "state_bytes": 3 * 4 * network.num_weights,
                "seconds": seconds,
            }
        )
    results.figures["cases"] = rows
    results.table(
        f"batch {command.batch_size}: peak memory of a step",
        rows,
        "network layers method step_bytes against_first largest_layer_bytes "
        "against_largest_layer state_bytes seconds",
    )
    results.notes.append(
        "step: activations and gradients, on top of the state; largest layer: the step of the "
        "layer that needs most, alone, its input and the open shortcut included; state: weights "
        "of the convolutions and their optimizer"
    )


main = benchmark(MemoryCommand, measure)


def _config(command: MemoryCommand, device: torch.device, arch: str, method: str) -> TrainConfig:
    options: dict[str, Any] = {"arch": arch, "device": device.type, "precision": "fp32"}
    return train_config(command, **{**options, **run_options(method)})


def _resolved(config: TrainConfig) -> tuple[Run, torch.device]:
    device = pick_device(config.device)
    return resolve_for(random_run(config), device), device


def _step(method: str, config: TrainConfig) -> tuple[float, float]:
    """Return the peak bytes of a step and its seconds."""
    run, device = _resolved(config)
    step = training_step(run, device, **learner_options(method))
    step(1)
    took_s: list[float] = []
    peak = peak_bytes(lambda: took_s.append(step(run.recipe.batch_size)), device)
    return peak, took_s[0]


def _largest_layer(config: TrainConfig) -> tuple[float, int]:
    """Return the peak bytes of the step of the layer that needs most, alone, and its number.

    Layers of one shape are measured once.
    """
    run, device = _resolved(config)
    network = run.architecture
    kinds: dict[Any, Architecture] = {}
    for position, spec in enumerate(network.layers):
        part = network[position : position + 1]
        kinds.setdefault(dataclasses.replace(spec, index=0), part)
    peaks = []
    for part in kinds.values():
        step = _layer_step(part, run, device)
        step(1)
        peak = peak_bytes(partial(step, run.recipe.batch_size), device)
        peaks.append((peak, part.layers[0].index))
    return max(peaks)


def _layer_step(part: Architecture, run: Run, device: torch.device) -> Callable[[int], None]:
    """Return a function that makes so many random inputs of a layer and lets it learn."""
    learner = LocalLearner(StageSpec(architecture=part, is_last=True, config=run.resolved), device)
    learner.chain.train()
    (spec,) = part.layers
    dtype = DTYPES[run.resolved.precision]
    layout = memory_format(run.resolved.rule, device)

    def random(images: int, *shape: int) -> torch.Tensor:
        found = torch.rand(images, *shape, dtype=dtype, device=device)
        return found.contiguous(memory_format=layout) if len(shape) == 3 else found

    def step(images: int) -> None:
        labels = torch.arange(images, device=device) % part.num_classes
        drawn = learner.chain.dropout_states(Share(step=0, batch_size=images), device)

        def visit(layer: Any, x: torch.Tensor) -> torch.Tensor:
            state = drawn.get(layer.spec.index)
            state = None if state is None else state.to(device)
            features, backward = learner.step.layer_step(layer, x, labels, images, state)
            learner.step.updates.add(layer, backward, [])
            return features

        carried = not spec.opens_block and spec.shortcut_channels
        sides = (spec.shortcut_size,) * 2
        # nothing else holds the input, so that the layer can free it
        learner.chain.walk(
            Activations(
                features=random(images, *spec.in_shape),
                shortcut=random(images, spec.shortcut_channels, *sides) if carried else None,
            ),
            visit,
        )
        learner.step.updates.finish()

    return step
