"""Each layer's own optimizer, its state as plain tensors, and the schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from rayff.learning.layer import CWConv
from rayff.spec import Recipe, UserError
from rayff.spec.recipe import OptimizerName

_OPTIMIZER = "optimizer."
_STATE: dict[OptimizerName, tuple[str, ...]] = {
    "adam": ("step", "exp_avg", "exp_avg_sq"),
    "adamw": ("step", "exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
}
"""What an optimizer of each kind has in memory for a weight, from its first step on."""


def make_optimizer(layer: CWConv, recipe: Recipe) -> Optimizer:
    """Return a fused optimizer for what one layer learns.

    On a GPU those of Adam's kind keep their learning rate and their count of steps in its
    memory, so that a recorded step finds them there (see rayff.learning.replay).
    """
    weights = list(layer.parameters())
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
    """Return what a layer learns, and its optimizer's state, as named, contiguous tensors.

    They share its memory where it is contiguous itself.
    """
    named: dict[str, Tensor] = {}
    for name, parameter in layer.named_parameters():
        named[name] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            named[_key(name, key)] = value
    return {name: value.contiguous() for name, value in named.items()}


def is_parameter(name: str) -> bool:
    """Return whether a name in a layer's state is that of something it learns."""
    return not name.startswith(_OPTIMIZER)


def _key(parameter: str, name: str) -> str:
    return _OPTIMIZER + ("" if parameter == "weight" else f"{parameter}.") + name


def check_state(
    index: int,
    shapes: Mapping[str, tuple[int, ...]],
    optimizer: OptimizerName,
    state: Mapping[str, Tensor],
) -> None:
    """Raise a UserError where this is not what `layer_state` gives of such a layer.

    Args:
        index: number of the layer.
        shapes: of what it learns, by name.
        optimizer: of the layer.
        state: the tensors to check.
    """
    for name, shape in shapes.items():
        found = state.get(name)
        if found is None or tuple(found.shape) != shape:
            what = f"no {name}" if found is None else f"a {name} of shape {tuple(found.shape)}"
            raise UserError(
                f"the checkpoint has {what} for layer {index}, but the network's has shape "
                f"{shape}: it belongs to another architecture"
            )
    expected = {
        _key(parameter, name): () if name == "step" else shape
        for parameter, shape in shapes.items()
        for name in _STATE[optimizer]
    }
    named = state.keys() - shapes.keys()
    if named and named != expected.keys():
        raise UserError(
            f"the checkpoint has {', '.join(map(ascii, sorted(named)))} beside the weight of "
            f"layer {index}, but {optimizer} has {', '.join(sorted(expected))}: it belongs to "
            "another run, or is damaged"
        )
    for name, value in state.items():
        shape = {**shapes, **expected}[name]
        if tuple(value.shape) != shape or value.dtype != torch.float32:
            raise UserError(
                f"the checkpoint's {name} of layer {index} has shape {tuple(value.shape)} "
                f"and {value.dtype}, expected {shape} and torch.float32: it is damaged"
            )
    for name in shapes:  # an optimizer's numbers may overflow in a run that goes on
        if not state[name].isfinite().all():
            raise UserError(
                f"the checkpoint's {name} of layer {index} holds numbers that are not finite: "
                "it is damaged"
            )


def restore_layer(layer: CWConv, optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    """Put back what `layer_state` gave; UserError where it belongs to another layer."""
    kind: OptimizerName = "sgd" if isinstance(optimizer, SGD) else "adam"
    parameters = dict(layer.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    check_state(layer.spec.index, shapes, kind, state)
    own: dict[int, dict[str, Tensor]] = {}
    for position, (name, parameter) in enumerate(parameters.items()):
        with torch.no_grad():
            parameter.copy_(state[name])
        keys = {key: _key(name, key) for key in _STATE[kind] if _key(name, key) in state}
        if keys:
            own[position] = {key: _like(parameter, state[full]) for key, full in keys.items()}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": own, "param_groups": groups})


def _like(weight: Tensor, value: Tensor) -> Tensor:
    """Return a copy, in the memory format of the weight where it has its shape."""
    if value.shape != weight.shape:
        return value.clone()
    return torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)
