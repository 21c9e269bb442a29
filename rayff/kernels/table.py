"""The static table of convolution backends: the same choice on every machine of one kind.

kernels.json has rows measured by `python -m rayff.bench kernels` for classes of devices, formats,
batch sizes and shapes of layers. A layer has the row of its own shape, or the nearest one that can
compute it. So runs of one device class repeat bit for bit, whatever the load while they start.
"""

from __future__ import annotations

import functools
import json
import math
from importlib.resources import files
from typing import Any

import torch

from rayff.config.kernels import Kernels, parse_kernels
from rayff.kernels.autotune import shape_of
from rayff.kernels.convolution import can_compute
from rayff.models.architecture import Architecture, LayerSpec

FILE = "kernels.json"

Row = tuple[int, tuple[int, ...], Kernels]
"""Images of a batch, shape of the layer, and its kernels."""


def table_kernels(
    architecture: Architecture, images: int, device_class: str, dtype: torch.dtype
) -> tuple[Kernels, ...]:
    """Return the kernels of each layer.

    Args:
        architecture: the layers.
        images: of a batch.
        device_class: of the least able device.
        dtype: of the activations.
    """
    rows = _rows(device_class, str(dtype).removeprefix("torch."))
    return tuple(_nearest(spec, images, rows, device_class, dtype) for spec in architecture.layers)


def _nearest(
    spec: LayerSpec, images: int, rows: tuple[Row, ...], device_class: str, dtype: torch.dtype
) -> Kernels:
    shape = shape_of(spec)

    def distance(row: Row) -> float:
        pairs = zip((images, *shape[2:]), (row[0], *row[1][2:]), strict=True)
        return sum(abs(math.log2(a / b)) for a, b in pairs)

    able = (
        row
        for row in rows
        if row[1][:2] == shape[:2]  # kernel size and stride
        and all(can_compute(b, spec, device_class, dtype) for b in row[2].backends)
    )
    nearest = min(able, key=distance, default=None)
    return Kernels() if nearest is None else nearest[2]


@functools.cache
def _rows(device_class: str, dtype: str) -> tuple[Row, ...]:
    """Return the rows of a class, or none where nothing was measured."""
    classes: dict[str, Any] = json.loads(files("rayff.kernels").joinpath(FILE).read_bytes())
    measured = classes.get(device_class, {}).get(dtype, [])
    return tuple(
        (images, tuple(shape), parse_kernels(kernels)[0]) for images, shape, kernels in measured
    )
