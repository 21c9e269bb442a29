"""Local losses: what a layer minimises on its own output, and the logits that it gives.

A local loss is a module of one layer, made with the layer's spec, the number of classes C and the
run's LossConfig. Its `forward(seen, labels)` takes what its tier says, a layer's pooled Moments or
its activation h, (B, K, H, W) of a convolution, and the labels (B,), and returns logits (B, C) and
the loss of each image (B,). In evaluation labels and losses are None. Its parameters, if it has
any, are learned with the layer's weights; they and its buffers are saved with them.

Shape legend: B batch, K channels, C classes, H x W pixels.
"""

from __future__ import annotations

import dataclasses
import sys
import traceback
from typing import Any

import torch
from torch import Tensor, nn

from rayff.config.errors import UserError
from rayff.config.local_loss import LossConfig
from rayff.config.registries import LOSSES
from rayff.learning.layer_state import check_savable
from rayff.learning.losses.local_loss import LocalLoss, Moments, PooledLoss, as_map
from rayff.models.architecture import LayerSpec, Spec

__all__ = ["LocalLoss", "Moments", "PooledLoss", "loss_class", "make_loss", "try_loss"]


def loss_class(name: str) -> type[nn.Module]:
    """Return the class of a local loss.

    Raises:
        UserError: an unknown name, or an object that is no subclass of nn.Module.
    """
    found = LOSSES.load(name)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError(f"--loss {name} is not a subclass of torch.nn.Module: name a class")
    return found


def make_loss(config: LossConfig, spec: Spec, num_classes: int, own: Any = None) -> nn.Module:
    """Return the loss of one layer.

    Args:
        config: the loss of the run and its options.
        spec: the layer.
        num_classes: C.
        own: the loss of this layer alone, by name, or what makes it; None for that of the run.

    Raises:
        UserError: what `loss_class` raises, or a loss that cannot be made of these arguments.
    """
    if isinstance(own, str):
        config, own = dataclasses.replace(config, name=own), None
    name = config.name if own is None else getattr(own, "__qualname__", repr(own))
    try:
        loss = (own or loss_class(name))(spec, num_classes, config)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"--loss {name} cannot be made for layer {spec.index} "
            f"({type(error).__name__}: {_one_line(error)}): its constructor takes the layer's "
            f"{type(spec).__name__}, the number of classes and the LossConfig"
        ) from error
    if not isinstance(loss, nn.Module):
        raise UserError(f"--loss {name} made {loss!r} for layer {spec.index}, which is no module")
    if isinstance(loss, PooledLoss) and not (
        type(loss.cells) is int and loss.cells > 0 and spec.out_size % loss.cells == 0
    ):
        raise UserError(
            f"--loss {name} divides the {spec.out_size}x{spec.out_size} map of layer "
            f"{spec.index} into {loss.cells!r} cells a side: choose a divisor of {spec.out_size}"
        )
    return loss


def local_loss(
    loss: nn.Module, seen: Tensor | Moments, labels: Tensor | None, num_classes: int
) -> tuple[Tensor, Tensor | None]:
    """Return logits (B, C) and, with labels, the loss of each image (B,).

    Args:
        loss: of a layer.
        seen: the layer's activation h, (B, K, H, W), (B, F) or (B, T, D), or the moments of it.
        labels: (B,), or None.
        num_classes: C.

    Raises:
        UserError: the loss returns other shapes.
    """
    if isinstance(loss, PooledLoss) and isinstance(seen, Tensor):
        seen = loss.moments(as_map(seen))
    returned = loss(seen, labels)
    if not (isinstance(returned, tuple) and len(returned) == 2):
        raise UserError(
            f"--loss: {type(loss).__name__} returned {type(returned).__name__}: return logits "
            "(B, C) and losses (B,), a pair"
        )
    logits, losses = returned
    # len() would make a constant of it in an exported graph
    images = (seen if isinstance(seen, Tensor) else seen.mean).shape[0]
    _check_shape(loss, "logits", logits, (images, num_classes))
    if labels is not None:
        _check_shape(loss, "losses", losses, (images,))
    return logits, losses


def _check_shape(loss: nn.Module, what: str, found: object, expected: tuple[int, ...]) -> None:
    """Raise a UserError where a loss returns another shape.

    The loss of a whole batch would be divided by the batch size once more, silently.
    """
    if isinstance(found, Tensor) and tuple(found.shape) == expected:
        return
    shape = f"of shape {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)
    remedy = (
        'return the loss of each image, (B,), such as cross_entropy(..., reduction="none")'
        if what == "losses"
        else "return (B, C) logits"
    )
    raise UserError(
        f"--loss: {type(loss).__name__} returned {what} {shape}, expected {expected}: {remedy}"
    )


def scores(loss: nn.Module, logits: Tensor) -> Tensor:
    """Return what readouts sum over layers, (B, C): log-probabilities, or goodness as it is."""
    return logits if getattr(loss, "sums_logits", False) else logits.log_softmax(dim=1)


def try_loss(
    config: LossConfig, spec: LayerSpec, num_classes: int, *, replicated: bool = False
) -> None:
    """Compute the loss of a layer once, with its gradient and without labels, on two images.

    Args:
        config: the loss and its options.
        spec: the layer.
        num_classes: C.
        replicated: whether several actors will share the batches of a layer.

    Raises:
        UserError: it cannot be made, fails, or returns something else than its contract says; or
            replicas would change what it computes.
    """
    with torch.random.fork_rng(devices=[]):
        loss = make_loss(config, spec, num_classes)
        check_savable(loss, f"--loss {config.name}")
        h = torch.rand(2, *spec.out_shape, requires_grad=True)
        labels = torch.tensor([0, num_classes - 1])
        try:
            _, losses = local_loss(loss, h, labels, num_classes)
            assert losses is not None, "labels give losses"
            check_gradient(losses, h, f"--loss {config.name}", spec)
            losses.sum().backward()  # type: ignore[no-untyped-call]
            if replicated:
                _check_replicable(loss, config.name, spec, num_classes)
            local_loss(loss.eval(), h.detach(), None, num_classes)
        except UserError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise UserError(
                f"--loss {config.name} fails on the activation {tuple(h.shape)} of layer "
                f"{spec.index}: {describe_error(error, loss)}"
            ) from error


def check_gradient(losses: Tensor, h: Tensor, what: str, spec: Spec) -> None:
    """Raise a UserError where losses (B,) are no numbers, or teach the layer of h nothing."""
    if not losses.isfinite().all():
        raise UserError(
            f"{what} is {losses.sum().item()} on two random images in layer {spec.index}: look "
            "for a division by zero, a logarithm of zero, or weights that are no numbers"
        )
    gradient = None
    if losses.requires_grad:
        (gradient,) = torch.autograd.grad(losses.sum(), h, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise UserError(
            f"{what} has no gradient at the activation of layer {spec.index}, which would learn "
            "nothing: compute it from the activation, without detach, torch.no_grad and argmax"
        )


def _check_replicable(loss: nn.Module, name: str, spec: LayerSpec, num_classes: int) -> None:
    """Raise a UserError where the loss of an image depends on the others of the batch."""
    h = torch.rand(4, *spec.out_shape)
    labels = torch.arange(4) % num_classes

    def losses(images: int) -> Tensor:
        torch.default_generator.manual_seed(0)
        found = local_loss(loss, h[:images], labels[:images], num_classes)[1]
        assert found is not None, "labels give losses"
        return found

    with torch.no_grad():
        half, whole = losses(2), losses(4)
    if not torch.allclose(half, whole[:2], rtol=1e-3, atol=1e-4 * whole.abs().max().item()):
        raise UserError(
            f"--replicas: what --loss {name} computes of an image depends on the others of the "
            "batch, which replicas split: compute each image by itself, or leave --replicas out"
        )


def describe_error(error: Exception, *modules: nn.Module) -> str:
    """Return an error of a user's module with the line that it came from.

    Args:
        error: the error.
        modules: of the user; the innermost line of their files counts, else of all.
    """
    frames = traceback.extract_tb(error.__traceback__)
    homes = (sys.modules.get(type(module).__module__) for module in modules)
    files = {getattr(home, "__file__", None) for home in homes}
    place = ([frame for frame in frames if frame.filename in files] or frames)[-1]
    return f"{type(error).__name__}: {_one_line(error)} ({place.filename}, line {place.lineno})"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
