"""The state of one layer as named tensors: parameters, buffers and optimizer state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rayff.config.errors import UserError
from rayff.learning.optimizers import LayerOptimizer, Shape

_OPTIMIZER = "optimizer."


def learned_parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that learn, by name."""
    return {name: p for name, p in layer.named_parameters() if p.requires_grad}


def fixed_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """Return what is saved and no optimizer changes: buffers, and parameters that do not learn."""
    saved = layer.state_dict()
    named = (*layer.named_parameters(), *layer.named_buffers())
    learned = learned_parameters(layer)
    return {name: t.detach() for name, t in named if name in saved and name not in learned}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the state of a layer holds, its optimizer's aside, by name."""

    learned: Mapping[str, Shape]
    """Shapes of the parameters that learn, in float32."""
    fixed: Mapping[str, tuple[Shape, torch.dtype]] = field(default_factory=dict)
    """Shapes and formats of all other tensors."""

    @classmethod
    def of(cls, layer: nn.Module) -> Layout:
        """Return that of a layer."""
        return cls(
            learned={name: tuple(p.shape) for name, p in learned_parameters(layer).items()},
            fixed={name: (tuple(t.shape), t.dtype) for name, t in fixed_tensors(layer).items()},
        )

    @property
    def tensors(self) -> dict[str, tuple[Shape, torch.dtype]]:
        """Shape and format of each tensor."""
        learned = {name: (shape, torch.float32) for name, shape in self.learned.items()}
        return learned | dict(self.fixed)


def check_savable(layer: nn.Module, what: str) -> None:
    """Raise a UserError where a checkpoint could not hold the state of a module.

    Args:
        layer: a layer, or a part of one.
        what: its name in messages.
    """
    for name, parameter in learned_parameters(layer).items():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise UserError(
                f"{what}: its parameter {name} has no shape yet: use the module of that kind "
                "without Lazy, and name its sizes"
            )
        if parameter.dtype != torch.float32:
            raise UserError(
                f"{what}: its parameter {name} is {_format(parameter)}, and layers learn in "
                "float32; leave out the dtype"
            )
    for name, tensor in fixed_tensors(layer).items():
        if tensor.is_complex():
            raise UserError(
                f"{what}: {name} is {_format(tensor)}, which a checkpoint does not hold: keep the "
                "real and imaginary parts, as torch.view_as_real returns them"
            )
        if not (tensor.is_meta or tensor.isfinite().all()):
            raise UserError(
                f"{what}: {name} holds numbers that are not finite, which a checkpoint refuses: "
                "register it with persistent=False"
            )
    known = {name for name, _ in (*layer.named_parameters(remove_duplicate=False),)}
    known |= {name for name, _ in layer.named_buffers(remove_duplicate=False)}
    if extra := sorted(layer.state_dict().keys() - known):
        raise UserError(
            f"{what}: its state has {', '.join(extra)}, which a checkpoint does not hold: keep "
            "what changes in buffers"
        )


def _format(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def layer_state(layer: nn.Module, optimizer: LayerOptimizer) -> dict[str, Tensor]:
    """Return a layer's parameters, buffers and optimizer state as named, contiguous tensors.

    They share its memory where it is contiguous itself.
    """
    named: dict[str, Tensor] = {}
    for name, parameter in learned_parameters(layer).items():
        named[name] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            named[state_key(name, key)] = value
    named |= fixed_tensors(layer)
    return {name: value.contiguous() for name, value in named.items()}


def is_of_layer(name: str) -> bool:
    """Return whether a name in a layer's state is not one of its optimizer."""
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
        if not is_of_layer(full):
            key = full.removeprefix(_OPTIMIZER)
            owner = next((name for name in found if key.startswith(f"{name}.")), "weight")
            found.setdefault(owner, {})[key.removeprefix(f"{owner}.")] = value
    return found


def check_state(
    index: int,
    layout: Layout,
    optimizer: type[LayerOptimizer],
    state: Mapping[str, Tensor],
) -> None:
    """Raise a UserError where `layer_state` cannot have returned this for such a layer.

    Args:
        index: number of the layer.
        layout: of the layer.
        optimizer: of the layer.
        state: the tensors to check.
    """
    for name, (shape, _) in layout.tensors.items():
        found = state.get(name)
        if found is None or tuple(found.shape) != shape:
            what = f"no {name}" if found is None else f"a {name} of shape {tuple(found.shape)}"
            raise UserError(
                f"the checkpoint has {what} for layer {index}, but the network's has shape "
                f"{shape}: it belongs to another architecture"
            )
    if optimizer.state_shapes(()) is not None:  # that of a user's optimizer is not known
        _check_optimizer_state(index, layout, optimizer, state)
    # optimizer state may overflow in a run that goes on
    for name, (shape, dtype) in layout.tensors.items():
        value = state[name]
        if value.dtype != dtype or not value.isfinite().all():
            raise UserError(
                f"the checkpoint's {name} of layer {index} is not {shape} finite numbers of "
                f"{str(dtype).removeprefix('torch.')}: it is damaged"
            )


def _check_optimizer_state(
    index: int,
    layout: Layout,
    optimizer: type[LayerOptimizer],
    state: Mapping[str, Tensor],
) -> None:
    expected = {
        state_key(parameter, name): own
        for parameter, shape in layout.learned.items()
        for name, own in (optimizer.state_shapes(shape) or {}).items()
    }
    named = state.keys() - layout.tensors.keys()
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
    check_state(index, Layout.of(layer), type(optimizer), state)
    parameters = learned_parameters(layer)
    saved = _optimizer_state(state, parameters)
    with torch.no_grad():
        for name, tensor in (*parameters.items(), *fixed_tensors(layer).items()):
            tensor.copy_(state[name])
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            key: _like(parameter, value) for key, value in saved[name].items()
        }


def _like(weight: Tensor, value: Tensor) -> Tensor:
    """Return a copy on the weight's device, in its memory format where it has its shape."""
    like = weight if value.shape == weight.shape else value
    return torch.empty_like(like, dtype=value.dtype, device=weight.device).copy_(value)
