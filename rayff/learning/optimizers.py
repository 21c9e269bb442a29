"""Each layer's own optimizer, with its state as plain tensors.

The built-in ones are the functional, fused form of torch.optim with the defaults of its classes:
constructing one of those classes imports torch's compiler, a second and 80 MiB in every actor. A
user's own, by import path, is a subclass of torch.optim.Optimizer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from rayff.config.errors import UserError
from rayff.config.recipe import Recipe
from rayff.config.registries import OPTIMIZERS

Shape = tuple[int, ...]


class LayerOptimizer:
    """The optimizer of the parameters of one layer.

    Args:
        parameters: what the layer learns, its loss's parameters included.
        recipe: learning rate, weight decay and the largest norm of the gradient.
        lr_factor: the layer's learning rate as a multiple of the run's.

    Attributes:
        capturable: whether a CUDA graph can record its step: the learning rate and all state are
            tensors on the device.
        state: by parameter and name; empty before the first step.
    """

    capturable = False

    def __init__(
        self, parameters: Iterable[nn.Parameter], recipe: Recipe, lr_factor: float = 1.0
    ) -> None:
        self.state: dict[Tensor, dict[str, Tensor]] = {p: {} for p in parameters}
        self.weight_decay = recipe.weight_decay
        self.clip_norm = recipe.clip_norm
        self.lr_factor = lr_factor
        self.lr: float | Tensor = recipe.lr * lr_factor
        if self.capturable and (device := next(iter(self.state)).device).type == "cuda":
            self.lr = torch.tensor(self.lr, device=device)

    def set_lr(self, lr: float) -> None:
        """Set the run's learning rate of the steps to come."""
        own = lr * self.lr_factor
        if isinstance(self.lr, Tensor):
            self.lr.fill_(own)
        else:
            self.lr = own

    @classmethod
    def state_shapes(cls, shape: Shape) -> dict[str, Shape] | None:
        """Return the state of a parameter of that shape by name; None where it is not known."""
        raise TypeError(f"{cls.__name__} does not say the shapes of its state")

    def _update(self, state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        """Update the parameters that have a gradient; `state` may be of several layers."""
        raise TypeError(f"{type(self).__name__} has no update")

    def _clip(self) -> None:
        """Scale the layer's gradient down to the largest norm; a GPU does not wait for it."""
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.state, self.clip_norm)

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters by their gradients, which are clipped."""
        self._clip()
        self._update(self.state)


class FusedAdamW(LayerOptimizer):
    """torch.optim.AdamW(fused=True)."""

    capturable = True
    _function: Callable[..., None] = staticmethod(adamw)

    @classmethod
    def state_shapes(cls, shape: Shape) -> dict[str, Shape]:
        """Return the number of steps and both moments."""
        return {"step": (), "exp_avg": shape, "exp_avg_sq": shape}

    def _update(self, state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        learned = [parameter for parameter in state if parameter.grad is not None]
        for parameter in learned:
            if not state[parameter]:
                state[parameter].update(
                    step=torch.zeros((), device=parameter.device),
                    exp_avg=torch.zeros_like(parameter),
                    exp_avg_sq=torch.zeros_like(parameter),
                )
        steps, means, squares = (
            [state[parameter][key] for parameter in learned]
            for key in ("step", "exp_avg", "exp_avg_sq")
        )
        self._function(
            *(learned, [parameter.grad for parameter in learned], means, squares, [], steps),
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            maximize=False,
            lr=self.lr,
            weight_decay=self.weight_decay,
        )


class FusedAdam(FusedAdamW):
    """torch.optim.Adam(fused=True)."""

    _function: Callable[..., None] = staticmethod(adam)


class FusedSGD(LayerOptimizer):
    """torch.optim.SGD(momentum=0.9, fused=True)."""

    @classmethod
    def state_shapes(cls, shape: Shape) -> dict[str, Shape]:
        """Return the momentum."""
        return {"momentum_buffer": shape}

    def _update(self, state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        learned = [parameter for parameter in state if parameter.grad is not None]
        buffers = [state[parameter].get("momentum_buffer") for parameter in learned]
        gradients: list[Any] = [parameter.grad for parameter in learned]
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
            if buffer is not None:
                state[parameter]["momentum_buffer"] = buffer


def torch_optimizer(kind: type[torch.optim.Optimizer]) -> type[LayerOptimizer]:
    """Return a LayerOptimizer around a class of torch.optim or a user's own subclass.

    It is called as `kind(parameters, lr=..., weight_decay=...)`. Its state is saved, so it must
    be tensors alone; a UserError names another value at the first step.
    """

    class TorchOptimizer(LayerOptimizer):
        def __init__(
            self, parameters: Iterable[nn.Parameter], recipe: Recipe, lr_factor: float = 1.0
        ) -> None:
            super().__init__(parameters, recipe, lr_factor)
            learned: Any = list(self.state)
            options: dict[str, Any] = {"lr": self.lr, "weight_decay": recipe.weight_decay}
            try:
                self.inner = kind(learned, **options)
            except Exception as error:  # the user's code may raise anything
                shapes = ", ".join(str(tuple(parameter.shape)) for parameter in learned)
                raise UserError(
                    f"--optimizer: {kind.__name__} cannot be made as {kind.__name__}(parameters, "
                    f"lr=..., weight_decay=...) for parameters of shape {shapes} "
                    f"({type(error).__name__}: {error})"
                ) from error
            self.initial = {p: copy.deepcopy(dict(self.inner.state[p])) for p in learned}

        def set_lr(self, lr: float) -> None:
            super().set_lr(lr)
            for group in self.inner.param_groups:
                group["lr"] = self.lr

        @classmethod
        def state_shapes(cls, shape: Shape) -> None:
            return None

        def _update(self, state: Mapping[Tensor, dict[str, Tensor]]) -> None:
            for parameter, saved in state.items():
                self.inner.state[parameter] = dict(saved) or copy.deepcopy(self.initial[parameter])
            self.inner.step()
            for parameter, own in state.items():
                for name, value in self.inner.state[parameter].items():
                    if isinstance(value, Tensor):
                        own[name] = value
                    elif value is not None:
                        raise UserError(
                            f"--optimizer: {kind.__name__} keeps {name!r} as "
                            f"{type(value).__name__}, which a checkpoint cannot hold: keep a "
                            "tensor, or use another optimizer"
                        )

    return TorchOptimizer


def optimizer_class(name: str) -> type[LayerOptimizer]:
    """Return the optimizer of that name or import path.

    Raises:
        UserError: an unknown name, or an object that is no optimizer.
    """
    found = OPTIMIZERS.load(name)
    if isinstance(found, type) and issubclass(found, LayerOptimizer):
        return found
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return torch_optimizer(found)
    raise UserError(
        f"--optimizer {name} is not a subclass of torch.optim.Optimizer: name a class that is"
    )


def try_optimizer(recipe: Recipe, shapes: Iterable[Shape]) -> None:
    """Step an optimizer by import path on random gradients, and again from its saved state.

    Args:
        recipe: names it.
        shapes: of the parameters of a layer.

    Raises:
        UserError: it is no optimizer, fails, or keeps something that a checkpoint does not hold.
    """
    kind = optimizer_class(recipe.optimizer)
    sizes = list(shapes)
    try:
        with torch.random.fork_rng(devices=[]):
            at_once, resumed = (_tried(kind, recipe, sizes, resumed=r) for r in (False, True))
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"--optimizer {recipe.optimizer} fails in step() ({type(error).__name__}: {error}): "
            "it is called without arguments, with the gradients in the parameters"
        ) from error
    if not all(map(torch.equal, at_once, resumed)):
        raise UserError(
            f"--optimizer {recipe.optimizer} goes another way when it continues from its saved "
            "state: keep all that it counts and remembers as tensors in self.state[parameter], "
            "which a checkpoint holds"
        )


def _tried(
    kind: type[LayerOptimizer], recipe: Recipe, shapes: Sequence[Shape], *, resumed: bool
) -> list[Tensor]:
    """Return parameters after three steps; `resumed` makes the optimizer anew for each."""
    torch.default_generator.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = kind(parameters, recipe)
    for step in range(1, 4):
        if resumed:
            saved, optimizer = optimizer.state, kind(parameters, recipe)
            optimizer.state = {p: {k: v.clone() for k, v in saved[p].items()} for p in parameters}
        optimizer.set_lr(0.1 / step)
        for number, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(10 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@torch.no_grad()
def step_together(optimizers: Sequence[LayerOptimizer]) -> None:
    """Step layers of one recipe; the bits are those of one step after the other.

    Layers of one learning rate share a kernel: small ones leave most of a GPU idle.
    """
    groups: dict[float, list[LayerOptimizer]] = {}
    for optimizer in optimizers:
        optimizer._clip()
        groups.setdefault(optimizer.lr_factor, []).append(optimizer)
    for group in groups.values():
        merged = {p: state for optimizer in group for p, state in optimizer.state.items()}
        group[0]._update(merged)
