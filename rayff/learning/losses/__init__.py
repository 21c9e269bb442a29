"""Local losses: what a layer minimises on its own output, and the logits that it gives.

A local loss is a module of one layer, made with the layer's LayerSpec, the number of classes C and
the run's LossConfig. Its `forward(seen, labels)` takes what its tier says, a layer's pooled
Moments or its map h (B, K, H, W), and the labels (B,), and returns logits (B, C) and the loss of
each image (B,). In evaluation labels and losses are None. Its parameters, if it has any, are
learned with the layer's weights and saved with them.

Shape legend: B batch, K channels, C classes, H x W pixels.
"""

from __future__ import annotations

import inspect
import traceback

import torch
from torch import Tensor, nn

from rayff.config.errors import UserError
from rayff.config.local_loss import LossConfig
from rayff.config.registries import LOSSES
from rayff.learning.losses.local_loss import LocalLoss, Moments, PooledLoss
from rayff.models.architecture import LayerSpec

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


def make_loss(config: LossConfig, spec: LayerSpec, num_classes: int) -> nn.Module:
    """Return the loss of one layer.

    Raises:
        UserError: what `loss_class` raises, or a loss that cannot be made of these arguments.
    """
    try:
        loss = loss_class(config.name)(spec, num_classes, config)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        reason = " ".join(str(error).split())
        raise UserError(
            f"--loss {config.name} cannot be made for layer {spec.index} "
            f"({type(error).__name__}: {reason}): its constructor takes the layer's LayerSpec, "
            "the number of classes and the LossConfig"
        ) from error
    if isinstance(loss, PooledLoss) and not (
        type(loss.cells) is int and loss.cells > 0 and spec.out_size % loss.cells == 0
    ):
        raise UserError(
            f"--loss {config.name} divides the {spec.out_size}x{spec.out_size} map of layer "
            f"{spec.index} into {loss.cells!r} cells a side: choose a divisor of {spec.out_size}"
        )
    parameters = {name for name, _ in loss.named_parameters()}
    if buffers := sorted(loss.state_dict().keys() - parameters):
        raise UserError(
            f"--loss {config.name} has the buffers {', '.join(buffers)}, which a checkpoint does "
            "not save: make them parameters, or leave them out"
        )
    return loss


def local_loss(
    loss: nn.Module, seen: Tensor | Moments, labels: Tensor | None, num_classes: int
) -> tuple[Tensor, Tensor | None]:
    """Return logits (B, C) and, with labels, the loss of each image (B,).

    Args:
        loss: of a layer.
        seen: the layer's activation h, (B, K, H, W), or the moments of it.
        labels: (B,), or None.
        num_classes: C.

    Raises:
        UserError: the loss returns other shapes.
    """
    if isinstance(loss, PooledLoss) and isinstance(seen, Tensor):
        seen = loss.moments(seen)
    returned = loss(seen, labels)
    if not (isinstance(returned, tuple) and len(returned) == 2):
        raise UserError(
            f"--loss: {type(loss).__name__} returned {type(returned).__name__}: return logits "
            "(B, C) and losses (B,), a pair"
        )
    logits, losses = returned
    images = len(seen) if isinstance(seen, Tensor) else len(seen.mean)
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


def try_loss(config: LossConfig, spec: LayerSpec, num_classes: int) -> None:
    """Compute the loss of a layer once, with its gradient and without labels, on two images.

    Raises:
        UserError: it cannot be made, fails, or returns something else than its contract says.
    """
    with torch.random.fork_rng(devices=[]):
        loss = make_loss(config, spec, num_classes)
        h = torch.rand(2, spec.out_channels, spec.out_size, spec.out_size, requires_grad=True)
    labels = torch.tensor([0, num_classes - 1])
    try:
        _, losses = local_loss(loss, h, labels, num_classes)
        assert losses is not None, "labels give losses"
        losses.sum().backward()  # type: ignore[no-untyped-call]
        local_loss(loss, h.detach(), None, num_classes)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == inspect.getfile(type(loss))]
        place = (own or frames)[-1]
        reason = " ".join(str(error).split())
        raise UserError(
            f"--loss {config.name} fails on the activation {tuple(h.shape)} of layer "
            f"{spec.index}: {type(error).__name__}: {reason} ({place.filename}, line "
            f"{place.lineno})"
        ) from error
