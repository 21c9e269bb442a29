"""The rules by which a layer finds its gradient: `--rule fast` and `--rule plain`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rayff.learning.analytic import analytic_forward, analytic_step
from rayff.learning.autograd import LayerStep, autograd_step
from rayff.learning.local_layer import LocalLayer


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How a layer learns and classifies, and the memory format of its weights."""

    step: LayerStep
    classify: Callable[[LocalLayer, Tensor], tuple[Tensor, Tensor]]
    """Takes a layer and its input to its features and logits, without dropout."""
    memory_format: torch.memory_format


RULES = {
    "plain": Rule(
        step=autograd_step, classify=LocalLayer.forward, memory_format=torch.contiguous_format
    ),
    "fast": Rule(step=analytic_step, classify=analytic_forward, memory_format=torch.channels_last),
}


def memory_format(
    rule: str, device: torch.device, *, of_modules: bool = False
) -> torch.memory_format:
    """Return the memory format of a layer's weights.

    Args:
        rule: fast or plain.
        device: where the layer computes; cuDNN's convolutions of bfloat16 want channels last.
        of_modules: whether the layer is a module.
    """
    if of_modules and device.type == "cuda":
        return torch.channels_last
    return RULES[rule].memory_format
