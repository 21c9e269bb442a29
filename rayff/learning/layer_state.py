"""The state of one layer as named tensors: parameters and optimizer state, saved and restored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from rayff.config.errors import UserError
from rayff.learning.optimizers import LayerOptimizer, Shape

_OPTIMIZER = "optimizer."


def layer_state(layer: nn.Module, optimizer: LayerOptimizer) -> dict[str, Tensor]:
    """Return a layer's parameters and its optimizer's state as named, contiguous tensors.

    They share its memory where it is contiguous itself.
    """
    named: dict[str, Tensor] = {}
    for name, parameter in layer.named_parameters():
        named[name] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            named[state_key(name, key)] = value
    return {name: value.contiguous() for name, value in named.items()}


def is_parameter(name: str) -> bool:
    """Return whether a name in a layer's state is that of a parameter."""
    return not name.startswith(_OPTIMIZER)


def state_key(parameter: str, name: str) -> str:
    """Return the name in a layer's state of an optimizer's tensor for a parameter."""
    return _OPTIMIZER + ("" if parameter == "weight" else f"{parameter}.") + name


def _optimizer_state(
    state: Mapping[str, Tensor], parameters: Iterable[str]
) -> dict[str, dict[str, Tensor]]:
    """Return the optimizer's tensors by parameter and name."""
    found: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
    for full, value in state.items():
        if not is_parameter(full):
            key = full.removeprefix(_OPTIMIZER)
            owner = next((name for name in found if key.startswith(f"{name}.")), "weight")
            found.setdefault(owner, {})[key.removeprefix(f"{owner}.")] = value
    return found


def check_state(
    index: int,
    shapes: Mapping[str, Shape],
    optimizer: type[LayerOptimizer],
    state: Mapping[str, Tensor],
) -> None:
    """Raise a UserError where `layer_state` cannot have returned this for such a layer.

    Args:
        index: number of the layer.
        shapes: of its parameters, by name.
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
    if optimizer.state_shapes(()) is not None:  # that of a user's optimizer is not known
        _check_optimizer_state(index, shapes, optimizer, state)
    for name, shape in shapes.items():  # optimizer state may overflow in a run that goes on
        value = state[name]
        if value.dtype != torch.float32 or not value.isfinite().all():
            raise UserError(
                f"the checkpoint's {name} of layer {index} is not {shape} finite numbers of "
                "float32: it is damaged"
            )


def _check_optimizer_state(
    index: int,
    shapes: Mapping[str, Shape],
    optimizer: type[LayerOptimizer],
    state: Mapping[str, Tensor],
) -> None:
    expected = {
        state_key(parameter, name): own
        for parameter, shape in shapes.items()
        for name, own in (optimizer.state_shapes(shape) or {}).items()
    }
    named = state.keys() - shapes.keys()
    if named and named != expected.keys():
        raise UserError(
            f"the checkpoint has {', '.join(map(ascii, sorted(named)))} with the parameters of "
            f"layer {index}, but its optimizer has {', '.join(sorted(expected))}: it belongs to "
            "another run, or is damaged"
        )
    for name in named:
        value = state[name]
        if tuple(value.shape) != expected[name] or value.dtype != torch.float32:
            raise UserError(
                f"the checkpoint's {name} of layer {index} has shape {tuple(value.shape)} "
                f"and {value.dtype}, expected {expected[name]} and torch.float32: it is damaged"
            )


def restore_layer(
    index: int, layer: nn.Module, optimizer: LayerOptimizer, state: Mapping[str, Tensor]
) -> None:
    """Load what `layer_state` returned; UserError where it belongs to another layer."""
    parameters = dict(layer.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    check_state(index, shapes, type(optimizer), state)
    saved = _optimizer_state(state, parameters)
    for name, parameter in parameters.items():
        with torch.no_grad():
            parameter.copy_(state[name])
        optimizer.state[parameter] = {
            key: _like(parameter, value) for key, value in saved[name].items()
        }


def _like(weight: Tensor, value: Tensor) -> Tensor:
    """Return a copy on the weight's device, in its memory format where it has its shape."""
    like = weight if value.shape == weight.shape else value
    return torch.empty_like(like, dtype=value.dtype, device=weight.device).copy_(value)
