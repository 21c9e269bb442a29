"""Each layer's own optimizer, its state as plain tensors, and the schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from rayff.learning.layer import CWConv
from rayff.spec import LayerSpec, Recipe, UserError
from rayff.spec.recipe import OptimizerName

_OPTIMIZER = "optimizer."
_STATE: dict[OptimizerName, tuple[str, ...]] = {
    "adam": ("step", "exp_avg", "exp_avg_sq"),
    "adamw": ("step", "exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
}
"""What an optimizer of each kind has in memory for a weight, from its first step on."""


def make_optimizer(layer: CWConv, recipe: Recipe) -> Optimizer:
    """Return a fused optimizer for the weights of one layer.

    On a GPU those of Adam's kind keep their learning rate and their count of steps in its
    memory, so that a recorded step finds them there (see rayff.learning.replay).
    """
    weights = [layer.weight]
    lr, decay = recipe.lr, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return SGD(weights, lr, momentum=0.9, weight_decay=decay, fused=True)
    kind = Adam if recipe.optimizer == "adam" else AdamW
    if not layer.weight.is_cuda:
        return kind(weights, lr, weight_decay=decay, fused=True)
    rate = torch.tensor(lr, device=layer.weight.device)
    return kind(weights, rate, weight_decay=decay, fused=True, capturable=True)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of the steps to come."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def cosine_lr(recipe: Recipe, epoch: int) -> float:
    """Return the learning rate of an epoch counted from 0: a cosine from lr down to lr_min."""
    cosine = (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
    return recipe.lr_min + (recipe.lr - recipe.lr_min) * cosine


def layer_state(layer: CWConv, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return weight and optimizer state of a layer as named, contiguous tensors.

    They share its memory where it is contiguous itself.
    """
    state = {_OPTIMIZER + name: value for name, value in optimizer.state[layer.weight].items()}
    named = {"weight": layer.weight.detach(), **state}
    return {name: value.contiguous() for name, value in named.items()}


def check_state(spec: LayerSpec, optimizer: OptimizerName, state: Mapping[str, Tensor]) -> None:
    """Raise a UserError where this is not what `layer_state` gives of such a layer."""
    weight = state.get("weight")
    if weight is None or tuple(weight.shape) != spec.weight_shape:
        found = "no weight" if weight is None else f"a weight of shape {tuple(weight.shape)}"
        raise UserError(
            f"the checkpoint has {found} for layer {spec.index}, but the network's has "
            f"shape {spec.weight_shape}: it belongs to another architecture"
        )
    own = {_OPTIMIZER + name for name in _STATE[optimizer]}
    named = state.keys() - {"weight"}
    if named and named != own:
        raise UserError(
            f"the checkpoint has {', '.join(map(ascii, sorted(named)))} beside the weight of "
            f"layer {spec.index}, but {optimizer} has {', '.join(sorted(own))}: it belongs to "
            "another run, or is damaged"
        )
    for name, value in state.items():
        shape = () if name == f"{_OPTIMIZER}step" else spec.weight_shape
        if tuple(value.shape) != shape or value.dtype != torch.float32:
            raise UserError(
                f"the checkpoint's {name} of layer {spec.index} has shape {tuple(value.shape)} "
                f"and {value.dtype}, expected {shape} and torch.float32: it is damaged"
            )
    if not weight.isfinite().all():  # an optimizer's numbers may overflow in a run that goes on
        raise UserError(
            f"the checkpoint's weight of layer {spec.index} holds numbers that are not finite: "
            "it is damaged"
        )


def restore_layer(layer: CWConv, optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put back what `layer_state` gave; UserError where it belongs to another layer."""
    check_state(layer.spec, "sgd" if isinstance(optimizer, SGD) else "adam", state)
    with torch.no_grad():
        layer.weight.copy_(state["weight"])
    own = {
        name.removeprefix(_OPTIMIZER): _like(layer.weight, value)
        for name, value in state.items()
        if name.startswith(_OPTIMIZER)
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": {0: own} if own else {}, "param_groups": groups})


def _like(weight: Tensor, value: Tensor) -> Tensor:
    """Return a copy, in the memory format of the weight where it has its shape."""
    if value.shape != weight.shape:
        return value.clone()
    return torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)
