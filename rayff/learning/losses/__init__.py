"""Local losses: what a layer minimises on its own output, and the logits that it gives.

A local loss is a module of one layer, made with the layer's LayerSpec and the number of classes C.
Its `forward(h, labels)` takes the activation h (B, K, H, W) and the labels (B,) and returns logits
(B, C) and the loss of each image (B,). In evaluation labels and losses are None. Its parameters,
if it has any, are learned with the layer's weights and saved with them.

Shape legend: B batch, K channels, C classes, H x W pixels.
"""

from __future__ import annotations

import inspect
import traceback

import torch
from torch import Tensor, nn

from rayff.config.errors import UserError
from rayff.config.registries import LOSSES
from rayff.models.architecture import LayerSpec


def make_loss(name: str, spec: LayerSpec, num_classes: int) -> nn.Module:
    """Return the loss of one layer.

    Raises:
        UserError: an unknown name, an object that is no subclass of nn.Module, or one that cannot
            be made of these arguments.
    """
    kind = LOSSES.load(name)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UserError(f"--loss {name} is not a subclass of torch.nn.Module: name a class")
    try:
        loss = kind(spec, num_classes)
    except Exception as error:  # the user's code may raise anything
        reason = " ".join(str(error).split())
        raise UserError(
            f"--loss {name} cannot be made for layer {spec.index} ({type(error).__name__}: "
            f"{reason}): its constructor takes the layer's LayerSpec and the number of classes"
        ) from error
    if buffers := [buffer for buffer, _ in loss.named_buffers()]:
        raise UserError(
            f"--loss {name} has the buffers {', '.join(buffers)}, which a checkpoint does not "
            "save: make them parameters, or leave them out"
        )
    return loss


def check_returned(
    loss: nn.Module, logits: Tensor, losses: Tensor, images: int, num_classes: int
) -> None:
    """Raise a UserError where a loss gives other shapes than logits (B, C) and losses (B,).

    The loss of a whole batch would be divided by the batch size once more, silently.
    """
    if tuple(logits.shape) != (images, num_classes):
        raise UserError(
            f"--loss: {type(loss).__name__} returned logits of shape {tuple(logits.shape)} for "
            f"{images} images and {num_classes} classes: return (B, C) logits"
        )
    if tuple(losses.shape) != (images,):
        raise UserError(
            f"--loss: {type(loss).__name__} returned losses of shape {tuple(losses.shape)} for "
            f"{images} images: return the loss of each image, (B,), such as "
            'cross_entropy(..., reduction="none")'
        )


def try_loss(name: str, spec: LayerSpec, num_classes: int) -> None:
    """Compute the loss of a layer once, with its gradient and without labels, on two images.

    Raises:
        UserError: it cannot be made, fails, or returns something else than its contract says.
    """
    with torch.random.fork_rng(devices=[]):
        loss = make_loss(name, spec, num_classes)
        h = torch.rand(2, spec.out_channels, spec.out_size, spec.out_size, requires_grad=True)
    labels = torch.tensor([0, num_classes - 1])
    try:
        logits, losses = loss(h, labels)
        check_returned(loss, logits, losses, len(labels), num_classes)
        losses.sum().backward()
        logits, _ = loss(h.detach(), None)
        check_returned(loss, logits, losses, len(labels), num_classes)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == inspect.getfile(type(loss))]
        place = (own or frames)[-1]
        reason = " ".join(str(error).split())
        raise UserError(
            f"--loss {name} fails on the activation {tuple(h.shape)} of layer {spec.index}: "
            f"{type(error).__name__}: {reason} ({place.filename}, line {place.lineno})"
        ) from error
