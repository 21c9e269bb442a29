"""A short timing of the layers, on the device where they will run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from rayff.learning.chain import Chain, Crossing, normalise
from rayff.learning.layer import CWConv
from rayff.learning.optimizers import make_optimizer
from rayff.learning.rule import local_step, plain_rule
from rayff.partition.cuts import Costs
from rayff.spec import IMAGE_SIZE, Architecture, Recipe

_CPU_BATCH = 16
"""Images of the timing on a CPU, where a batch's time grows with its images."""
_REPEATS = 3


class LayerTime(NamedTuple):
    """What a training batch takes in one layer."""

    images_s: float
    """Seconds that grow with the images."""
    step_s: float
    """Seconds of the optimizer, whatever the images."""


class SummingTime(NamedTuple):
    """What it takes to send a gradient once between replicas; a sum sends it 2(r - 1)/r times."""

    call_s: float
    """Seconds of a gradient however small."""
    byte_s: float
    """Seconds of each byte."""


def time_layers(
    architecture: Architecture, recipe: Recipe, device: torch.device, dtype: torch.dtype
) -> list[LayerTime]:
    """Return the seconds that a training batch takes in each layer; medians of three.

    On a CPU a few images stand for the batch, so the optimizer, whose time does not depend on
    the images, is timed apart.
    """
    images = recipe.batch_size if device.type == "cuda" else min(_CPU_BATCH, recipe.batch_size)
    scale = recipe.batch_size / images
    chain = Chain.build(architecture, dropout=recipe.dropout, dtype=dtype).to(device)
    optimizers = [make_optimizer(layer, recipe) for layer in chain.cwconvs()]
    labels = torch.zeros(images, dtype=torch.int64, device=device)
    shape = (images, architecture.image_channels, IMAGE_SIZE, IMAGE_SIZE)
    pixels = torch.randint(256, shape, dtype=torch.uint8, device=device)
    times: list[list[LayerTime]] = [[] for _ in optimizers]

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def timed(work: Callable[[], object]) -> float:
        start = clock()
        work()
        return clock() - start

    def visit(layer: CWConv, x: torch.Tensor) -> torch.Tensor:
        position = layer.spec.index - architecture.layers[0].index
        optimizer = optimizers[position]
        start = clock()
        features, _ = local_step(plain_rule, layer, optimizer, x, labels, step=0)
        whole_s, step_s = clock() - start, timed(optimizer.step)
        images_s = max(0.0, whole_s - step_s) * scale
        times[position].append(LayerTime(images_s, step_s))
        return features

    for _ in range(1 + _REPEATS):  # the first warms up
        chain.walk(Crossing(features=normalise(pixels, dtype)), visit)
    return [
        LayerTime(*(statistics.median(part) for part in zip(*layer_times[1:], strict=True)))
        for layer_times in times
    ]


def costs(
    architecture: Architecture,
    times: Sequence[LayerTime],
    *,
    batch_size: int,
    bytes_per_element: int,
    seconds_per_byte: float,
    summing: SummingTime,
) -> Costs:
    """Return the costs of a batch.

    Args:
        architecture: all layers.
        times: of each layer, as measured.
        batch_size: images of a batch.
        bytes_per_element: of features.
        seconds_per_byte: of a transfer between stages.
        summing: of gradients between replicas; a weight's has 4 bytes.
    """
    crossing = [
        architecture.crossing(cut) * batch_size * bytes_per_element * seconds_per_byte
        for cut in range(1, len(architecture))
    ]
    return Costs(
        layer_s=[time.images_s for time in times],
        crossing_s=[0.0, *crossing],
        step_s=[time.step_s for time in times],
        summing_s=[
            summing.call_s + 4 * layer.num_weights * summing.byte_s
            for layer in architecture.layers
        ],
    )
