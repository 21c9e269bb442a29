"""Costs from the number of multiplications, where nothing is timed."""

from __future__ import annotations

from collections.abc import Collection

from rayff.models.architecture import Architecture
from rayff.partition.boundaries import Costs

_PRODUCTS_PER_S = {"cpu": 1e11, "cuda": 1e14}
"""Multiply-adds a second of an ordinary device: it scales all costs alike, so it moves no boundary
and decides the length of chunks alone."""


def estimated_costs(
    architecture: Architecture, batch_size: int, device: str, frozen: Collection[int] = ()
) -> Costs:
    """Return the costs of a batch: two products a layer, forward and weight gradient.

    Args:
        architecture: all layers.
        batch_size: images of a batch.
        device: cpu or cuda.
        frozen: numbers of the layers that only run forward.
    """
    rate = _PRODUCTS_PER_S[device]
    layer_s = [
        (1 if layer.index in frozen else 2) * batch_size * layer.num_products / rate
        for layer in architecture.layers
    ]
    return Costs(layer_s=layer_s, boundary_s=[0.0] * len(architecture))
