"""Each layer's own optimizer, its state as plain tensors, and the schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from rayff.config.errors import UserError
from rayff.config.recipe import OptimizerName, Recipe
from rayff.learning.layer import CWConv

_OPTIMIZER = "optimizer."
_STATE: dict[OptimizerName, tuple[str, ...]] = {
    "adam": ("step", "exp_avg", "exp_avg_sq"),
    "adamw": ("step", "exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
}
"""What an optimizer of each kind has in memory for a weight, from its first step on."""


class LayerOptimizer:
    """The optimizer of what one layer learns, by torch's fused kernels.

    It is the functional form of torch.optim, with the defaults of torch.optim's classes: those
    import torch's compiler when they are first used, a second and 150 MiB in every actor.

    On a GPU those of Adam's kind keep their learning rate and their count of steps in its
    memory, so that a recorded step finds them there (see rayff.learning.recorded).

    Args:
        layer: what has parameters.
        recipe: which optimizer, with its learning rate and weight decay.
    """

    def __init__(self, layer: CWConv, recipe: Recipe) -> None:
        self.name = recipe.optimizer
        self.weight_decay = recipe.weight_decay
        self.state: dict[Tensor, dict[str, Tensor]] = {p: {} for p in layer.parameters()}
        in_memory = layer.weight.is_cuda and self.name != "sgd"
        self.lr: float | Tensor = (
            torch.tensor(recipe.lr, device=layer.weight.device) if in_memory else recipe.lr
        )

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the steps to come."""
        if isinstance(self.lr, Tensor):
            self.lr.fill_(lr)
        else:
            self.lr = lr

    def step(self) -> None:
        """Let the parameters follow their gradients."""
        step_together([self])

    @torch.no_grad()
    def _step(self, state: dict[Tensor, dict[str, Tensor]]) -> None:
        learned = [parameter for parameter in state if parameter.grad is not None]
        gradients = [parameter.grad for parameter in learned if parameter.grad is not None]
        if self.name == "sgd":
            self._step_sgd(learned, gradients, state)
        else:
            self._step_adam(learned, gradients, state)

    def _step_sgd(
        self,
        learned: list[Tensor],
        gradients: list[Tensor],
        state: dict[Tensor, dict[str, Tensor]],
    ) -> None:
        buffers = [state[parameter].get("momentum_buffer") for parameter in learned]
        sgd(
            *(learned, gradients, buffers),
            fused=True,
            momentum=0.9,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            lr=self.lr,
            weight_decay=self.weight_decay,
        )
        for parameter, buffer in zip(learned, buffers, strict=True):
            assert buffer is not None, "the first step makes it"
            state[parameter]["momentum_buffer"] = buffer

    def _step_adam(
        self,
        learned: list[Tensor],
        gradients: list[Tensor],
        state: dict[Tensor, dict[str, Tensor]],
    ) -> None:
        for parameter in learned:
            if not state[parameter]:
                state[parameter].update(
                    step=torch.zeros((), device=parameter.device),
                    exp_avg=torch.zeros_like(parameter),
                    exp_avg_sq=torch.zeros_like(parameter),
                )
        steps, means, squares = (
            [state[parameter][key] for parameter in learned] for key in _STATE[self.name]
        )
        kind = adam if self.name == "adam" else adamw
        kind(
            *(learned, gradients, means, squares, [], steps),
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            maximize=False,
            lr=self.lr,
            weight_decay=self.weight_decay,
        )


def step_together(optimizers: Sequence[LayerOptimizer]) -> None:
    """Let the parameters of layers of one recipe follow their gradients, in one kernel.

    It gives the bits of one step after the other; small layers leave most of a GPU idle.
    """
    merged = {p: state for optimizer in optimizers for p, state in optimizer.state.items()}
    optimizers[0]._step(merged)


def cosine_lr(recipe: Recipe, epoch: int) -> float:
    """Return the learning rate of an epoch counted from 0: a cosine from lr down to lr_min."""
    cosine = (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
    return recipe.lr_min + (recipe.lr - recipe.lr_min) * cosine


def layer_state(layer: CWConv, optimizer: LayerOptimizer) -> dict[str, Tensor]:
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


def restore_layer(layer: CWConv, optimizer: LayerOptimizer, state: Mapping[str, Tensor]) -> None:
    """Put back what `layer_state` gave; UserError where it belongs to another layer."""
    parameters = dict(layer.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    check_state(layer.spec.index, shapes, optimizer.name, state)
    for name, parameter in parameters.items():
        with torch.no_grad():
            parameter.copy_(state[name])
        keys = {key: _key(name, key) for key in _STATE[optimizer.name]}
        optimizer.state[parameter] = {
            key: _like(parameter, state[full]) for key, full in keys.items() if full in state
        }


def _like(weight: Tensor, value: Tensor) -> Tensor:
    """Return a copy beside the weight, in its memory format where it has its shape."""
    like = weight if value.shape == weight.shape else value
    return torch.empty_like(like, dtype=value.dtype, device=weight.device).copy_(value)
