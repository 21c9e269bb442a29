"""A short timing of the layers, on the device where they will run.

The times decide boundaries and replicas, never kernels, and so no bits. They are taken once a
machine and kept in a file of the cache folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from rayff.config.environment import cache_dir
from rayff.config.errors import UserError
from rayff.config.kernels import Kernels
from rayff.config.local_loss import GOODNESS, LossConfig
from rayff.config.recipe import Recipe
from rayff.kernels import amx, gpu, native
from rayff.kernels.convolution import backends
from rayff.kernels.pointwise import PointwiseResult
from rayff.kernels.timing import once_s, seconds
from rayff.learning.analytic import AnalyticStep, in_closed_form
from rayff.learning.autograd import Backward
from rayff.learning.generators import Share
from rayff.learning.layer import CWConv
from rayff.learning.layer_state import learned_parameters
from rayff.learning.local_layer import LocalLayer
from rayff.learning.module_layer import ModuleLayer, identity
from rayff.learning.optimizers import LayerOptimizer, optimizer_class
from rayff.learning.rules import RULES, memory_format
from rayff.models.architecture import Architecture, ModuleSource, ModuleSpec, Spec
from rayff.models.zoo import module_rows
from rayff.partition.layer_costs import LayerTime

FORMAT = 7
_REPEATS = 3


_TIMED = ("batch_size", "optimizer", "weight_decay", "dropout", "clip_norm")
"""Values of the recipe that decide how long a step takes."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What decides the times of a layer besides its shape, kernels and module."""

    recipe: Recipe
    num_classes: int
    device: torch.device
    dtype: torch.dtype
    rule: str = "fast"
    loss: LossConfig = GOODNESS
    neighbours: int = 0
    """Other stages that time at the same moment: they share caches and memory."""

    def layer(self, spec: Spec, source: ModuleSource | None) -> LocalLayer:
        """Return a layer with initial weights, on the CPU."""
        options: dict[str, Any] = {
            "dropout": self.recipe.dropout,
            "dtype": self.dtype,
            "loss": self.loss,
        }
        if isinstance(spec, ModuleSpec):
            assert source is not None, "modules have a source"
            rows = module_rows(source, self.num_classes)
            arch = f"--arch {source.function}"
            return ModuleLayer(rows, spec, self.num_classes, arch=arch, **options)
        return CWConv(spec, self.num_classes, **options)

    def memory_format(self, spec: Spec) -> torch.memory_format:
        """Return the memory format of a layer's weights and input."""
        return memory_format(self.rule, self.device, of_modules=isinstance(spec, ModuleSpec))

    def key(self, spec: Spec, kernels: Kernels, source: ModuleSource | None = None) -> str:
        """Return a name for the timing of one shape of layer, and of one module."""
        where = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"{native.processor()}, {torch.get_num_threads()} threads"
        )
        shape: Spec | str
        if isinstance(spec, ModuleSpec):
            with torch.device("meta"):
                layer = self.layer(spec, source)
            assert isinstance(layer, ModuleLayer)
            shape = f"{dataclasses.replace(spec, index=0)} {identity(layer)}"
        else:
            shape = dataclasses.replace(spec, index=0, opens_block=False, join="none")
            shape = dataclasses.replace(shape, shortcut_channels=0, shortcut_size=0)
        recipe = {name: getattr(self.recipe, name) for name in _TIMED}
        known = (FORMAT, torch.__version__, where, shape, recipe, self.num_classes)
        compiled = (native.missing() is None, amx.missing() is None)
        how = (str(self.dtype), self.rule, self.loss, str(kernels), self.neighbours, *compiled)
        return hashlib.sha256(repr((*known, *how)).encode()).hexdigest()[:24]


def time_layers(
    architecture: Architecture,
    conditions: Conditions,
    kernels: Sequence[Kernels],
    *,
    anew: bool = False,
) -> list[LayerTime]:
    """Return what a training batch takes in each layer.

    Args:
        architecture: the layers.
        conditions: under which they run.
        kernels: of each layer.
        anew: whether to time them now, and take medians, with what disturbs them in training too;
            else what was found before on this machine holds.

    Raises:
        UserError: kernels that cannot compute a layer here.
    """
    if conditions.rule == "fast":
        check_kernels(architecture, kernels, conditions.device, conditions.dtype)
    cache = _Cache(None if anew else cache_dir() / "timings.json")
    pick = median if anew else min
    found: list[LayerTime] = []
    for spec, own in zip(architecture.layers, kernels, strict=True):
        key = conditions.key(spec, own, architecture.source)
        if key not in cache.times:
            cache.times[key] = time_layer(spec, conditions, own, architecture.source, pick=pick)
            cache.changed = True
        found.append(cache.times[key])
    cache.write()
    return found


def check_kernels(
    architecture: Architecture,
    kernels: Sequence[Kernels],
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Raise a UserError where a device cannot compute a layer with its kernels."""
    for spec, own in zip(architecture.convolutions, kernels, strict=True):
        known = ("conv", *backends(spec, device, dtype))
        for backend in own.backends:
            if backend not in known:
                why = native.missing()
                if backend == "amx":
                    why = amx.missing() or "it multiplies bfloat16 only: --precision bf16"
                raise UserError(
                    f"--kernels: layer {spec.index} cannot be computed with {backend} here"
                    + (f" ({why})" if why else "")
                    + f"; it can with {', '.join(dict.fromkeys(known))}"
                )


def time_layer(
    spec: Spec,
    conditions: Conditions,
    kernels: Kernels,
    source: ModuleSource | None = None,
    repeats: int = _REPEATS,
    pick: Callable[[Iterable[float]], float] = min,
) -> LayerTime:
    """Time one layer; of a few repetitions by default the fastest phases, which others disturbed
    least."""
    layer = conditions.layer(spec, source).to(conditions.device)
    layer = layer.to(memory_format=conditions.memory_format(spec))
    if isinstance(layer, CWConv):
        layer.kernels = kernels
    kind = optimizer_class(conditions.recipe.optimizer)
    optimizer = kind(learned_parameters(layer).values(), conditions.recipe)
    fused = conditions.rule == "fast" and in_closed_form(layer)
    time_pass = _time_fused_pass if fused else _time_pass
    passes = [time_pass(layer, optimizer, conditions) for _ in range(1 + repeats)][1:]
    return LayerTime(
        forward_s=pick(each[0] for each in passes),
        pointwise_s=pick(each[1] for each in passes),
        gradient_s=pick(each[2] for each in passes),
        optimizer_s=pick(each[3] for each in passes),
    )


Phases = tuple[float, float, float, float]
"""Seconds of forward pass, pointwise pass, gradient and optimizer."""


def _time_pass(layer: LocalLayer, optimizer: LayerOptimizer, conditions: Conditions) -> Phases:
    images = conditions.recipe.batch_size
    x, labels = random_batch(layer.spec, conditions, images)
    step, state = RULES[conditions.rule].step, _dropout_state(layer, x)
    backward: list[Backward] = []
    measure = seconds if conditions.rule == "fast" else once_s

    def forward() -> None:
        backward.append(step(layer, x, labels, images, state)[1])

    forward_s = measure(forward, x.device)
    gradient_s = measure(lambda: backward[-1](), x.device)
    return forward_s, 0.0, gradient_s, measure(optimizer.step, x.device)


def _time_fused_pass(
    layer: LocalLayer, optimizer: LayerOptimizer, conditions: Conditions
) -> Phases:
    images = conditions.recipe.batch_size
    x, labels = random_batch(layer.spec, conditions, images)
    steps: list[AnalyticStep] = []
    outputs: list[Tensor] = []
    results: list[PointwiseResult] = []
    state = _dropout_state(layer, x)

    def forward() -> None:
        steps.append(AnalyticStep(layer, x))
        outputs.append(steps[-1].forward())

    def pointwise() -> None:
        results.append(steps[-1].pointwise(outputs[-1], labels, images, state))

    def gradient() -> None:
        found = results[-1].gradient
        assert found is not None, "labels give a gradient"
        steps[-1].weight_gradient(found)

    return (
        seconds(forward, x.device),
        seconds(pointwise, x.device),
        seconds(gradient, x.device),
        seconds(optimizer.step, x.device),
    )


def _dropout_state(layer: LocalLayer, x: Tensor) -> Tensor | None:
    if not layer.dropped:
        return None
    share = Share(step=0, batch_size=len(x))
    return layer.dropout_state(share, x.device).to(x.device)


def random_batch(spec: Spec, conditions: Conditions, images: int) -> tuple[Tensor, Tensor]:
    """Return features that could enter a layer, and labels."""
    shape = (images, *spec.in_shape)
    x = torch.randn(shape, dtype=conditions.dtype, device=conditions.device)
    x = x.to(memory_format=conditions.memory_format(spec)) if x.dim() == 4 else x
    if conditions.rule == "fast" and gpu.usable(x):
        x = gpu.pitched(x)
    labels = torch.arange(images, device=conditions.device) % conditions.num_classes
    return x, labels


def _is_possible(found: LayerTime) -> bool:
    return all(0 <= value < math.inf for value in dataclasses.astuple(found))


class _Cache:
    """The times found so far, in a JSON file; one that cannot be used is treated as empty."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.changed = False
        self.times: dict[str, LayerTime] = {}
        if path is None:
            return
        try:
            entries: dict[str, Any] = json.loads(path.read_bytes())
            found = {
                key: LayerTime(**{name: float(value) for name, value in entry.items()})
                for key, entry in entries.items()
            }
            self.times = {key: each for key, each in found.items() if _is_possible(each)}
        except (OSError, ValueError, TypeError, AttributeError):
            pass

    def write(self) -> None:
        """Write aside and rename, as other stages may do at the same time."""
        if self.path is None or not self.changed:
            return
        entries = {key: dataclasses.asdict(entry) for key, entry in self.times.items()}
        aside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(entries, indent=1))
            aside.replace(self.path)
        except OSError:
            pass  # the next run times again
