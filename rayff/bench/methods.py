"""The methods that benchmarks compare: local losses by name, and backpropagation in three ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rayff.config.errors import UserError
from rayff.config.registries import LOSSES

BACKPROPAGATION: dict[str, dict[str, Any]] = {
    "backpropagation": {},
    "checkpointing": {"checkpointing": True},
    "accumulation": {"accumulation": 4},
}
"""Options of the learner by the name of the way: plain, keeping the inputs of blocks alone, and a
quarter of each batch at a time."""


def parse_methods(text: str) -> list[str]:
    """Return the methods of an option, each once.

    Raises:
        UserError: a name that is neither a loss nor a way of backpropagation.
    """
    methods = list(dict.fromkeys(text.split(",")))
    for name in methods:
        if name not in BACKPROPAGATION and name not in LOSSES.names and ":" not in name:
            known = ", ".join((*LOSSES.names, *BACKPROPAGATION))
            raise UserError(f"--methods: unknown {name!r}; known are {known}")
    return methods


def run_options(method: str) -> dict[str, Any]:
    """Return the options of a training by a method."""
    if method not in BACKPROPAGATION:
        return {"loss": method}
    return {"method": "bp", "kernels": None, "autotune": False}


def learner_options(method: str, *, compiled: bool = False) -> dict[str, Any]:
    """Return the options of the learner of a method."""
    if method not in BACKPROPAGATION:
        return {}
    return {**BACKPROPAGATION[method], "distribute": _compiled if compiled else _as_it_is}


Forward = Callable[..., Tensor]


def _as_it_is(network: nn.Module) -> Forward:
    """Return the forward pass with torch's own dropout, which is faster than rayff's."""

    def forward(features: Tensor, share: object) -> Tensor:
        logits: Tensor = network(features)
        return logits

    return forward


def _compiled(network: nn.Module) -> Forward:
    return _as_it_is(torch.compile(network, dynamic=False))  # type: ignore[arg-type]
