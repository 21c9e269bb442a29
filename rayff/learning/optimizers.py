"""Each layer's own optimizer, its state as plain tensors, and the schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from rayff.learning.layer import CWConv
from rayff.spec import Recipe, UserError

_OPTIMIZER = "optimizer."


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


def restore_layer(layer: CWConv, optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put back what `layer_state` gave; UserError where it belongs to another layer."""
    weight = state.get("weight")
    if weight is None or weight.shape != layer.weight.shape:
        found = "no weight" if weight is None else f"a weight of shape {tuple(weight.shape)}"
        raise UserError(
            f"the checkpoint has {found} for layer {layer.spec.index}, but the network's has "
            f"shape {tuple(layer.weight.shape)}: it belongs to another architecture"
        )
    with torch.no_grad():
        layer.weight.copy_(weight)
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
