"""Training methods: the network that each trains, found by name without importing the others."""

from __future__ import annotations

import pkgutil
from typing import Any

import torch

from rayff.config.local_loss import LossConfig
from rayff.config.recipe import Method
from rayff.learning.classifier import Classifier
from rayff.learning.layer_state import Layout
from rayff.models.architecture import Architecture

NETWORKS: dict[Method, str] = {
    "ff": "rayff.learning.network:LocalNetwork",
    "bp": "rayff.baselines.model:EndToEndNetwork",
    "bp-deepsup": "rayff.baselines.model:EndToEndNetwork",
}
"""Import path of the network of each method."""


def build_network(
    method: Method,
    architecture: Architecture,
    *,
    loss: LossConfig,
    window: tuple[int, int],
    class_names: tuple[str, ...],
    dtype: torch.dtype = torch.float32,
) -> Classifier:
    """Return a network of the method with initial weights."""
    network_class: Any = pkgutil.resolve_name(NETWORKS[method])
    network: Classifier = network_class.build(
        architecture,
        method=method,
        loss=loss,
        window=window,
        class_names=class_names,
        dtype=dtype,
    )
    return network


def layouts(method: Method, architecture: Architecture, loss: LossConfig) -> dict[int, Layout]:
    """Return what the state of each layer holds, by number.

    The layers themselves say it: they are built without memory.
    """
    with torch.device("meta"):
        network = build_network(method, architecture, loss=loss, window=(0, 0), class_names=())
    return {spec.index: Layout.of(module) for spec, module in network.learned_layers}


def num_classifiers(method: Method, architecture: Architecture) -> int:
    """Return how many layers of a network give logits."""
    return 1 if method == "bp" else len(architecture)
