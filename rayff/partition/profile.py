"""A short timing of the layers, on the device where they will run.

For each shape of layer it finds the fastest kernels and what a training batch costs with them. It
is done once a machine: what was found is kept in a file of the cache folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayff.config.errors import UserError
from rayff.config.kernels import Kernels
from rayff.config.recipe import Recipe
from rayff.kernels import amx, gpu, native
from rayff.kernels.convolution import Convolution, methods
from rayff.learning.analytic import FastStep
from rayff.learning.generators import Share
from rayff.learning.layer import CWConv
from rayff.learning.optimizers import LayerOptimizer
from rayff.learning.recorded import cuda_graph
from rayff.learning.rules import RULES
from rayff.models.architecture import Architecture, LayerSpec
from rayff.partition.boundaries import Costs

FORMAT = 5
_SAMPLE = 128
"""Images with which kernels are compared on a CPU, at most. Few would give too much weight to what
does not depend on them, such as the transforms of filters."""
_MARGIN = 1.1
"""How much faster than the surest method another one must be: those load caches and memory more,
which layers of other stages, and the one before, want too."""
_REPEATS = 3
_REPLAYS = 10


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """Seconds that a training batch takes in one layer."""

    kernels: Kernels
    """With which it was timed."""
    forward_s: float
    """The convolution, pool and unfolding included."""
    pointwise_s: float
    """Dropout, ReLU, goodness, loss, normalisation and the gradient of all that."""
    gradient_s: float
    """The gradient of the weights; with the plain rule everything but the optimizer."""
    optimizer_s: float
    """The optimizer's step, whose time does not depend on the images."""

    @property
    def images_s(self) -> float:
        """Seconds that grow with the images."""
        return self.forward_s + self.pointwise_s + self.gradient_s

    @property
    def total_s(self) -> float:
        """Seconds of the whole step."""
        return self.images_s + self.optimizer_s


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under which layers are timed: what decides the times besides the layer's shape."""

    recipe: Recipe
    num_classes: int
    device: torch.device
    dtype: torch.dtype
    rule: str = "fast"
    neighbours: int = 0
    """Other stages that time at the same moment: they share caches and memory."""

    def key(self, spec: LayerSpec, kernels: Kernels | None) -> str:
        """Return a name for the timing of one shape of layer."""
        where = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"{native.processor()}, {torch.get_num_threads()} threads"
        )
        shape = dataclasses.replace(spec, index=0, opens_block=False, join="none")
        shape = dataclasses.replace(shape, shortcut_channels=0, shortcut_size=0)
        recipe = dataclasses.replace(self.recipe, epochs=0, lr=0.0, lr_min=0.0)
        known = (FORMAT, torch.__version__, where, shape, recipe, self.num_classes)
        compiled = (native.missing() is None, amx.missing() is None)
        how = (str(self.dtype), self.rule, str(kernels), self.neighbours, *compiled)
        return hashlib.sha256(repr((*known, *how)).encode()).hexdigest()[:24]


def time_layers(
    architecture: Architecture,
    conditions: Conditions,
    kernels: Sequence[Kernels] | None = None,
) -> list[LayerTime]:
    """Return what a training batch takes in each layer.

    Args:
        architecture: the layers.
        conditions: under which they run.
        kernels: of each layer; None to find the fastest.

    Raises:
        UserError: kernels that cannot compute a layer here.
    """
    if kernels is not None and conditions.rule == "fast":
        _check_fit(architecture, conditions, kernels)
    cache = _Cache(native.cache_dir() / "timings.json")
    found: list[LayerTime] = []
    for position, spec in enumerate(architecture.layers):
        wanted = None if kernels is None else kernels[position]
        key = conditions.key(spec, wanted)
        if key not in cache.times:
            cache.times[key] = time_layer(spec, conditions, wanted)
            cache.changed = True
        found.append(cache.times[key])
    cache.write()
    return found


def _check_fit(
    architecture: Architecture, conditions: Conditions, kernels: Sequence[Kernels]
) -> None:
    for spec, wanted in zip(architecture.layers, kernels, strict=True):
        known = ("conv", *methods(spec, conditions.device, conditions.dtype))
        for method in wanted.methods:
            if method not in known:
                why = native.missing()
                if method == "amx":
                    why = amx.missing() or "it multiplies bfloat16 only: --precision bf16"
                raise UserError(
                    f"--kernels: layer {spec.index} cannot be computed with {method} here"
                    + (f" ({why})" if why else "")
                    + f"; it can with {', '.join(dict.fromkeys(known))}"
                )


def time_layer(
    spec: LayerSpec,
    conditions: Conditions,
    kernels: Kernels | None,
    repeats: int = _REPEATS,
) -> LayerTime:
    """Time one layer; of a few repetitions the fastest phases, which others disturbed least."""
    layer = CWConv(
        spec, conditions.num_classes, dropout=conditions.recipe.dropout, dtype=conditions.dtype
    ).to(conditions.device)
    layer = layer.to(memory_format=RULES[conditions.rule].memory_format)
    optimizer = LayerOptimizer(layer, conditions.recipe)
    if conditions.rule == "fast":
        layer.kernels = kernels or fastest_kernels(layer, conditions)
    passes = [
        _time_pass(layer, optimizer, conditions, conditions.recipe.batch_size)
        for _ in range(1 + repeats)
    ][1:]
    phases = [min(seconds) for seconds in zip(*passes, strict=True)]
    return LayerTime(
        kernels=layer.kernels,
        forward_s=phases[0],
        pointwise_s=phases[1],
        gradient_s=phases[2],
        optimizer_s=phases[3],
    )


def _time_pass(
    layer: CWConv, optimizer: LayerOptimizer, conditions: Conditions, images: int
) -> tuple[float, float, float, float]:
    """Return the seconds of the phases of one step."""
    x, labels = random_batch(layer.spec, conditions, images)
    share = Share(step=0, batch_size=images)
    if conditions.rule != "fast":  # one phase: what autograd does when is its own affair
        learn = RULES[conditions.rule].learn
        gradient_s = _once_s(lambda: learn(layer, x, labels, share), x.device)
        return 0.0, 0.0, gradient_s, _once_s(optimizer.step, x.device)
    steps: list[FastStep] = []

    def forward() -> None:
        steps.append(FastStep(layer, x))
        steps[-1].forward()

    forward_s = seconds(forward, x.device)
    step = steps[-1]
    state = layer.dropout_state(share, x.device).to(x.device) if layer.dropped else None
    pointwise_s = seconds(lambda: step.pointwise(labels, share, state), x.device)
    gradient_s = seconds(step.weight_gradient, x.device)
    return forward_s, pointwise_s, gradient_s, seconds(optimizer.step, x.device)


def random_batch(spec: LayerSpec, conditions: Conditions, images: int) -> tuple[Tensor, Tensor]:
    """Return features that could enter a layer, and labels."""
    shape = (images, spec.in_channels, spec.in_size, spec.in_size)
    x = torch.randn(shape, dtype=conditions.dtype, device=conditions.device)
    x = x.to(memory_format=RULES[conditions.rule].memory_format)
    if conditions.rule == "fast" and gpu.usable(x):
        x = gpu.pitched(x)
    labels = torch.arange(images, device=conditions.device) % conditions.num_classes
    return x, labels


def fastest_kernels(layer: CWConv, conditions: Conditions) -> Kernels:
    """Return the fastest pair of methods; if both unfold, they share the unfolded input.

    The methods take turns and medians count, so that a moment's disturbance does not decide.
    """
    size = conditions.recipe.batch_size
    images = min(size, _SAMPLE) if conditions.device.type == "cpu" else size
    x, _ = random_batch(layer.spec, conditions, images)
    x = FastStep(layer, x).convolution.x  # pooled
    weight = layer.weight.detach().to(layer.dtype)
    known = methods(layer.spec, conditions.device, conditions.dtype)
    seen: dict[str, list[tuple[float, ...]]] = {method: [] for method in known}
    for method in known * (1 + _REPEATS):
        seen[method].append(_time_method(layer.spec, method, x, weight))
    # of each method, without its first turn: unfolding, forward and gradient
    usual = {method: np.median(turns[1:], axis=0) for method, turns in seen.items()}
    for method in known[1:]:
        usual[method][1:] *= _MARGIN

    def pair_s(pair: Kernels) -> float:
        unfold_s = usual["unfold"][0] if "unfold" in pair.methods else 0.0
        return float(unfold_s + usual[pair.forward][1] + usual[pair.gradient][2])

    return min((Kernels(a, b) for a in known for b in known), key=pair_s)


def _time_method(
    spec: LayerSpec, method: str, x: Tensor, weight: Tensor
) -> tuple[float, float, float]:
    """Return the seconds of unfolding, of the forward pass and of the gradient."""
    made: list[Convolution] = []
    outputs: list[Tensor] = []

    def unfold() -> None:
        made.append(Convolution(spec, Kernels(method, method), x, weight))

    unfold_s = seconds(unfold, x.device)
    forward_s = seconds(lambda: outputs.append(made[-1].forward()), x.device)
    gradient_s = seconds(lambda: made[-1].weight_gradient(outputs[-1]), x.device)
    return unfold_s, forward_s, gradient_s


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that some of the fast rule's work takes.

    On a GPU it is recorded and replayed, as in training: launched one by one, small kernels would
    take as long as their launches.
    """
    if device.type != "cuda":
        return _once_s(work, device)

    def nothing_returned() -> None:
        work()

    with warnings.catch_warnings():  # of recordings without a kernel, such as of a mere view
        warnings.simplefilter("ignore")
        replay = cuda_graph(nothing_returned)
    replay()
    start = clock(device)
    for _ in range(_REPLAYS):
        replay()
    return (clock(device) - start) / _REPLAYS


def _once_s(work: Callable[[], object], device: torch.device) -> float:
    start = clock(device)
    work()
    return clock(device) - start


def clock(device: torch.device) -> float:
    """Return the seconds on a clock, once the device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class _Cache:
    """The times found so far, in a JSON file; one that cannot be used is as good as none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.changed = False
        self.times: dict[str, LayerTime] = {}
        try:
            entries = json.loads(path.read_bytes())
            self.times = {key: _from_json(entry) for key, entry in entries.items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass

    def write(self) -> None:
        """Write aside and rename, as other stages may do at the same time."""
        if not self.changed:
            return
        entries = {key: dataclasses.asdict(entry) for key, entry in self.times.items()}
        aside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(entries, indent=1))
            aside.replace(self.path)
        except OSError:
            pass  # the next run times again


def _from_json(entry: dict[str, Any]) -> LayerTime:
    kernels = Kernels(str(entry["kernels"]["forward"]), str(entry["kernels"]["gradient"]))
    seconds = {key: float(value) for key, value in entry.items() if key != "kernels"}
    return LayerTime(kernels=kernels, **seconds)


@dataclass(frozen=True, kw_only=True)
class AllReduceTime:
    """What it takes to send a gradient once between replicas; a sum sends it 2(r - 1)/r times."""

    call_s: float
    """Seconds of a gradient however small."""
    byte_s: float
    """Seconds of each byte."""


def costs(
    architecture: Architecture,
    times: Sequence[LayerTime],
    *,
    batch_size: int,
    bytes_per_element: int,
    seconds_per_byte: float,
    all_reduce: AllReduceTime,
) -> Costs:
    """Return the costs of a batch.

    Args:
        architecture: all layers.
        times: of each layer, as measured.
        batch_size: images of a batch.
        bytes_per_element: of features.
        seconds_per_byte: of a transfer between stages.
        all_reduce: of gradients between replicas; a weight's has 4 bytes.
    """
    activations = [
        architecture.boundary_elements(cut) * batch_size * bytes_per_element * seconds_per_byte
        for cut in range(1, len(architecture))
    ]
    return Costs(
        layer_s=[time.images_s for time in times],
        boundary_s=[0.0, *activations],
        step_s=[time.optimizer_s for time in times],
        all_reduce_s=[
            all_reduce.call_s + 4 * layer.num_weights * all_reduce.byte_s
            for layer in architecture.layers
        ],
    )
