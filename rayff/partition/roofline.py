"""The least time of a layer by its operations and bytes at the rates of a device."""

from __future__ import annotations

import math

from rayff.models.architecture import Spec


def optimizer_bytes(spec: Spec) -> int:
    """Return the bytes of AdamW's step: it reads four numbers of each weight and writes three."""
    return 28 * spec.num_weights


def least_s(
    spec: Spec,
    images: int,
    *,
    bytes_per_element: int,
    operations_per_s: float,
    bytes_per_s: float,
) -> float:
    """Return the longer of a layer's operations and bytes in a training batch, in seconds.

    A layer multiplies twice (forward, gradient); reads x twice; writes y, features and gradient;
    reads y and gradient; and steps its weights.
    """
    operations = 4 * images * spec.num_products
    x, y = images * math.prod(spec.in_shape), images * math.prod(spec.out_shape)
    traffic = bytes_per_element * (2 * x + 5 * y) + optimizer_bytes(spec)
    return max(operations / operations_per_s, traffic / bytes_per_s)
