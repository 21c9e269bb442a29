"""The command `rayff bench step`: one training step, plain rule against fast rule."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from rayff.bench.outcome import Outcome, at_least_one, check_save, in_turns, median, spread
from rayff.cli import parse
from rayff.config.kernels import Kernels
from rayff.config.recipe import recipe
from rayff.engine.commands import Batch
from rayff.engine.learner import LocalLearner, StageSpec
from rayff.kernels.convolution import Convolution
from rayff.kernels.precision import DTYPES, default_precision
from rayff.learning.analytic import FastStep
from rayff.learning.chain import Activations, normalise
from rayff.learning.generators import Share
from rayff.learning.layer import CWConv
from rayff.models.architecture import IMAGE_SIZE, Architecture, LayerSpec
from rayff.models.zoo import architecture
from rayff.partition.profile import (
    Conditions,
    LayerTime,
    clock,
    random_batch,
    seconds,
    time_layer,
    time_layers,
)

DESCRIPTION = """\
Time one training step of a network: plain rule in float32 against fast rule.

Examples:
  rayff bench step --arch tinycnn --batch-size 16 --repeats 2
  rayff bench step --arch resnet --save bench-step.json

Notes:
- First by layer and phase, next to a floor: torch's convolution and its weight
  gradient alone. More than 100% of the floor is faster than torch.
- Then as whole steps, in alternation.
"""


@dataclass(frozen=True, kw_only=True)
class StepCommand:
    """The options."""

    arch: str = "resnet"
    """Architecture: {architectures}."""
    batch_size: int = 128
    """Images per step."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the fast rule; auto is bf16 where the device has units for it. float32 is
    timed too."""
    threads: int | None = None
    """Torch threads. Default: one per core."""
    repeats: int = 5
    """Repetitions, of which the median is reported."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto is a GPU where there is one."""
    save: str | None = None
    """JSON file to write the figures to."""


def main(args: Sequence[str]) -> int:
    """Time, print, and save where asked."""
    command = parse(StepCommand, module="rayff.bench step", description=DESCRIPTION, args=args)
    at_least_one(batch_size=command.batch_size, repeats=command.repeats)
    check_save(command.save)
    if command.threads is not None:
        at_least_one(threads=command.threads)
        torch.set_num_threads(command.threads)
    from rayff.engine.prediction import pick_device

    outcome = measure(command, pick_device(command.device))
    outcome.show()
    outcome.save(command.save)
    return 0


def measure(command: StepCommand, device: torch.device) -> Outcome:
    """Return the benchmark's tables and figures."""
    network = architecture(command.arch, num_classes=10, image_channels=3)
    settings = recipe(command.arch, {"batch_size": command.batch_size})
    precision = default_precision(device) if command.precision == "auto" else command.precision
    plain = Conditions(
        recipe=settings, num_classes=10, device=device, dtype=torch.float32, rule="plain"
    )
    fast = dataclasses.replace(plain, rule="fast", dtype=DTYPES[precision])
    kernels = tuple(layer.kernels for layer in time_layers(network, fast))
    outcome = Outcome("step", {**dataclasses.asdict(command), "precision": precision})
    _by_layer(outcome, network, plain, fast, kernels, command)
    variants = {"plain, float32": (plain, kernels), f"fast, {precision}": (fast, kernels)}
    if precision != "fp32":
        float32 = dataclasses.replace(fast, dtype=torch.float32)
        chosen = tuple(layer.kernels for layer in time_layers(network, float32))
        variants["fast, fp32"] = (float32, chosen)
    if device.type == "cuda":
        _least(outcome, network, fast)
    _whole_steps(outcome, network, variants, command)
    return outcome


def _least(outcome: Outcome, network: Architecture, fast: Conditions) -> None:
    """Tell what the operations and bytes of a step take at the rates that are measured here.

    A layer multiplies twice (forward, gradient); reads x twice; writes y, features and gradient;
    reads y and gradient; and AdamW reads four numbers of each weight and writes three.
    """
    device, size, images = fast.device, fast.dtype.itemsize, fast.recipe.batch_size
    matrix = torch.randn(8192, 8192, dtype=fast.dtype, device=device)
    operations_per_s = 2 * 8192**3 / seconds(lambda: matrix @ matrix, device)
    memory = torch.zeros(2**30, dtype=torch.uint8, device=device)
    copy = torch.empty_like(memory)
    bytes_per_s = 2 * memory.numel() / seconds(lambda: copy.copy_(memory), device)
    total_s = 0.0
    for spec in network.layers:
        operations = 4 * images * spec.out_size**2 * spec.num_weights
        x = images * spec.in_channels * spec.in_size**2
        y = images * spec.out_channels * spec.out_size**2
        traffic = size * (2 * x + 5 * y) + 28 * spec.num_weights
        total_s += max(operations / operations_per_s, traffic / bytes_per_s)
    outcome.figures["least"] = {
        "operations_per_s": operations_per_s,
        "bytes_per_s": bytes_per_s,
        "step_s": total_s,
    }
    table = outcome.table(
        f"{network.name}, batch {images}: the least that operations and bytes take",
        *("product of matrices", "copy", "step"),
    )
    table.add_row(
        f"{operations_per_s / 1e12:.0f} TFLOP/s",
        f"{bytes_per_s / 1e12:.2f} TB/s",
        f"{1000 * total_s:.2f} ms",
    )


def _by_layer(
    outcome: Outcome,
    network: Architecture,
    plain: Conditions,
    fast: Conditions,
    kernels: tuple[Kernels, ...],
    command: StepCommand,
) -> None:
    table = outcome.table(
        f"{network.name}, batch {command.batch_size}: milliseconds by layer",
        *("layer", "kernels", "plain", "fast", "ratio", "forward", "pointwise", "gradient"),
        *("optimizer", "floor", "floor/fast"),
    )
    known: dict[str, tuple[float, LayerTime, float]] = {}
    rows, digits = [], 3 if fast.device.type == "cuda" else 1
    for spec, chosen in zip(network.layers, kernels, strict=True):
        key = fast.key(spec, chosen)
        if key not in known:
            known[key] = (
                time_layer(spec, plain, None, command.repeats).total_s,
                time_layer(spec, fast, chosen, command.repeats),
                floor_s(spec, fast, command.repeats),
            )
        plain_s, layer, floor = known[key]
        table.add_row(
            str(spec.index),
            str(layer.kernels),
            *(f"{1000 * each:.{digits}f}" for each in (plain_s, layer.total_s)),
            f"{plain_s / layer.total_s:.2f}x",
            *(
                f"{1000 * each:.{digits}f}"
                for each in (
                    *(layer.forward_s, layer.pointwise_s, layer.gradient_s, layer.optimizer_s),
                    floor,
                )
            ),
            f"{100 * floor / layer.total_s:.0f}%",
        )
        rows.append(
            {
                "layer": spec.index,
                **dataclasses.asdict(layer),
                "kernels": str(layer.kernels),
                "plain_s": plain_s,
                "fast_s": layer.total_s,
                "floor_s": floor,
            }
        )
    outcome.figures["layers"] = rows


def floor_s(spec: LayerSpec, conditions: Conditions, repeats: int) -> float:
    """Return the seconds of torch's convolution and weight gradient alone."""
    layer = CWConv(spec, conditions.num_classes, dtype=conditions.dtype).to(conditions.device)
    layer = layer.to(memory_format=torch.channels_last)
    x, _ = random_batch(spec, conditions, conditions.recipe.batch_size)
    x = FastStep(layer, x).convolution.x
    weight = layer.weight.detach().to(layer.dtype)

    def work() -> None:
        convolution = Convolution(spec, Kernels(), x, weight)
        convolution.weight_gradient(convolution.forward())

    return median(in_turns({"floor": lambda: seconds(work, conditions.device)}, repeats)["floor"])


def _whole_steps(
    outcome: Outcome,
    network: Architecture,
    variants: dict[str, tuple[Conditions, tuple[Kernels, ...]]],
    command: StepCommand,
) -> None:
    works = {
        name: partial(whole_step(network, conditions, kernels), command.batch_size)
        for name, (conditions, kernels) in variants.items()
    }
    measured = in_turns(works, command.repeats)
    base = median(measured["plain, float32"])
    digits = 5 if base < 0.1 else 3
    table = outcome.table(
        f"{network.name}, batch {command.batch_size}: whole steps, in turns",
        *("rule", "seconds: median (least-most)", "images/s", "against plain float32"),
    )
    rows = []
    for name, taken in measured.items():
        ratio = base / median(taken)
        images_per_s = command.batch_size / median(taken)
        table.add_row(
            name,
            spread(taken, digits=digits),
            f"{images_per_s:.1f}",
            f"{ratio:.2f}x",
        )
        rows.append({"rule": name, "seconds": taken, "images_per_s": images_per_s, "ratio": ratio})
    outcome.figures["steps"] = rows


def whole_step(
    network: Architecture, conditions: Conditions, kernels: tuple[Kernels, ...]
) -> Callable[[int], float]:
    """Return what takes so many images through all layers, and says how many seconds it took."""
    device = conditions.device
    precision = next(name for name, dtype in DTYPES.items() if dtype == conditions.dtype)
    spec = StageSpec(
        architecture=network,
        is_last=True,
        recipe=conditions.recipe,
        seed=0,
        precision=precision,
        rule=conditions.rule,
        kernels=kernels,
    )
    learner = LocalLearner(spec, device)
    steps = itertools.count()

    def work(images: int) -> float:
        shape = (images, network.image_channels, IMAGE_SIZE, IMAGE_SIZE)
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(device)
        labels = torch.arange(images, device=device) % conditions.num_classes
        batch = Batch(
            activations=Activations(features=normalise(pixels, conditions.dtype)), labels=labels
        )
        start = clock(device)
        learner.learn(batch, Share(step=next(steps), batch_size=images))
        return clock(device) - start

    return work
