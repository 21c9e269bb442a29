"""The static table of convolution backends: the same choice on every machine of one class.

kernels.json has rows measured by `rayff bench kernels` for device classes, formats,
batch sizes and shapes of layers. A layer has the row of its own shape and batch size, or the
nearest one that can compute it. So runs of one device class repeat bit for bit, whatever the load
while they start.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rayff.config.kernels import Kernels, parse_kernels
from rayff.kernels.autotune import Shape, shape_of
from rayff.kernels.convolution import can_compute
from rayff.models.architecture import Architecture, LayerSpec

PATH = Path(__file__).with_name("kernels.json")

_SAME_FLOAT32 = ("cpu-avx512-bf16", "cpu-amx", "cpu-avx512")
"""Classes that compute float32 with the same units: one without rows takes those of another."""

Row = tuple[int, Shape, Kernels]
"""Images of a batch, shape of the layer, and its kernels."""


def table_kernels(
    architecture: Architecture, images: int, device_class: str, dtype: torch.dtype
) -> tuple[Kernels, ...]:
    """Return the kernels of each layer: torch's convolution where no row comes near.

    Args:
        architecture: the layers.
        images: of a batch.
        device_class: of the least able device.
        dtype: of the activations.
    """
    rows = _rows(device_class, str(dtype).removeprefix("torch."))
    found: dict[Shape, Kernels] = {}
    for spec in architecture.convolutions:
        shape = shape_of(spec)
        if shape not in found:
            found[shape] = _nearest(spec, images, rows, device_class, dtype)
    return tuple(found[shape_of(spec)] for spec in architecture.convolutions)


def _nearest(
    spec: LayerSpec, images: int, rows: tuple[Row, ...], device_class: str, dtype: torch.dtype
) -> Kernels:
    """Return the kernels of the nearest row with the layer's kernel size and stride.

    The distance is the product of the factors by which batch size, channels and size differ, a
    ratio of whole numbers, so that every machine finds the same row. Of equally near rows the
    first by batch size and shape counts.
    """
    shape = shape_of(spec)
    wanted = (images, *shape[2:])

    def distance(row: Row) -> tuple[float, int, Shape]:
        pairs = [sorted(pair) for pair in zip(wanted, (row[0], *row[1][2:]), strict=True)]
        factor = math.prod(high for _, high in pairs) / math.prod(low for low, _ in pairs)
        return factor, *row[:2]

    def able(kernels: Kernels) -> bool:
        return all(can_compute(b, spec, device_class, dtype) for b in kernels.backends)

    near = (row for row in rows if row[1][:2] == shape[:2] and able(row[2]))
    best = min(near, key=distance, default=None)
    return Kernels() if best is None else best[2]


@functools.cache
def _rows(device_class: str, dtype: str) -> tuple[Row, ...]:
    """Return the rows of a class, or none where nothing was measured."""
    table = read_table(PATH)
    same = _SAME_FLOAT32 if dtype == "float32" and device_class in _SAME_FLOAT32 else ()
    measured = (table.get(each, {}).get(dtype) for each in (device_class, *same))
    return tuple(
        (images, tuple(shape), parse_kernels(kernels)[0])
        for images, shape, kernels in next(filter(None, measured), ())
    )


def read_table(path: Path) -> dict[str, dict[str, Any]]:
    """Return a table as JSON has it: by class, notes on the measurement and rows by format."""
    table: dict[str, dict[str, Any]] = json.loads(path.read_bytes())
    return table


def write_table(path: Path, table: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a table with one row a line, sorted."""
    classes = []
    for name, entry in sorted(table.items()):
        fields = []
        for key, value in entry.items():
            text = json.dumps(value)
            if isinstance(value, list):
                rows = (json.dumps(row) for row in sorted(value))
                text = "[\n   " + ",\n   ".join(rows) + "\n  ]"
            fields.append(f"  {json.dumps(key)}: {text}")
        classes.append(f" {json.dumps(name)}: {{\n" + ",\n".join(fields) + "\n }")
    path.write_text("{\n" + ",\n".join(classes) + "\n}\n")
