"""Layers of the paper's networks and distances of tensors, for tests of kernels and learning."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rayff.models.architecture import LayerSpec
from rayff.models.zoo import architecture

CPU = torch.device("cpu")
DEVICES = [
    pytest.param(CPU, id="cpu"),
    pytest.param(
        torch.device("cuda"),
        id="cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference in units of the norm of the expected tensor."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


def _shapes() -> dict[str, LayerSpec]:
    found: dict[str, LayerSpec] = {}
    for name in ("resnet", "vgg", "tinycnn"):
        for spec in architecture(name, num_classes=10, image_channels=3).layers:
            alone = replace(
                spec, opens_block=False, join="none", shortcut_channels=0, shortcut_size=0
            )
            key = (
                f"{spec.in_channels}-{spec.out_channels} k{spec.kernel_size} s{spec.stride} "
                f"{spec.in_size}{' pool' if spec.pool else ''}"
            )
            found.setdefault(key, alone)
    return found


SHAPES = _shapes()
"""Each shape of layer of the paper's three networks, once, such as "100-100 k3 s1 32"."""
