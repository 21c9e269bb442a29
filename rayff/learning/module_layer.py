"""A layer that is any torch.nn.Module, trained by autograd inside it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from rayff.config.errors import UserError
from rayff.config.local_loss import GOODNESS, LossConfig
from rayff.config.registry import ImportPathError
from rayff.config.text import plural
from rayff.kernels.dropout_bits import drawn_bytes
from rayff.learning.generators import Share, dropout_state, weight_seed
from rayff.learning.local_layer import LocalLayer
from rayff.models.architecture import ModuleSpec, Shape
from rayff.models.zoo import ModuleRow


def make_module(row: ModuleRow, index: int, seed: int, arch: str = "--arch") -> nn.Module:
    """Return the module of a layer; its initial weights follow from seed and number alone.

    Args:
        row: makes it.
        index: number of the layer.
        seed: of the run.
        arch: name of the network in messages.

    Raises:
        ImportPathError: it cannot be made, or is no module.
    """
    if isinstance(row.make, nn.Module):
        raise ImportPathError(
            f"layer {index} of {arch} is a {type(row.make).__name__} itself: give what makes it, "
            f"such as functools.partial({type(row.make).__name__}, ...), so that each layer is "
            "made under its own seed, where it is trained"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(weight_seed(seed, index))
            module = row.make()
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        reason = " ".join(str(error).split())
        raise ImportPathError(
            f"layer {index} of {arch} cannot be made ({type(error).__name__}: {reason})"
        ) from error
    if not isinstance(module, nn.Module):
        raise ImportPathError(
            f"layer {index} of {arch} is made as {type(module).__name__}: return a torch.nn.Module"
        )
    return module


class ModuleLayer(LocalLayer):
    """A module that learns from a local loss of its output h.

    What the next layer receives is h detached, with dropout, as the module's method `hand_on`
    changes it where there is one, in the training dtype. Dropout zeroes whole channels of a map,
    and single features of other shapes; the loss sees h without it.

    Args:
        rows: of the whole network.
        spec: number and shapes.
        num_classes: C.
        dropout: share of what is handed on that training sets to zero, in steps of 1/256.
        seed: the run's seed; with the layer's number it decides weights, dropout and what the
            module draws.
        dtype: number format of the features; float32, or that of autocast inside the module.
            Parameters stay in float32, and so does h.
        loss: the local loss of the run and its options; the row's own comes before it.
        arch: name of the network in messages.

    Raises:
        ImportPathError: the rows are of another network, or the module cannot be made.
        UserError: the loss cannot be made.
    """

    spec: ModuleSpec

    def __init__(
        self,
        rows: Sequence[ModuleRow],
        spec: ModuleSpec,
        num_classes: int,
        *,
        dropout: float = 0.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        loss: LossConfig = GOODNESS,
        arch: str = "--arch",
    ) -> None:
        super().__init__()
        if spec.index >= len(rows):
            raise ImportPathError(
                f"{arch} makes {plural(len(rows), 'layer')} here, and the network has a layer "
                f"{spec.index}: use the code that it was trained with"
            )
        self.spec = spec
        self.num_classes = num_classes
        self.dropped = round(dropout * 256)
        self.seed = seed
        self.dtype = dtype
        row = rows[spec.index]
        self.module = make_module(row, spec.index, seed, arch)
        self.add_loss(loss, row.loss)

    @property
    def _dropped_shape(self) -> Shape:
        """Shape of an image's dropout: what is dropped as one has one number."""
        shape = self.spec.out_shape
        return shape[:1] if len(shape) == 3 else shape

    def dropout_state(self, share: Share, device: torch.device) -> Tensor:
        """Return the state of the layer's dropout with a share of a batch, in host memory."""
        elements = math.prod(self._dropped_shape)
        return dropout_state(self.seed, self.spec.index, share, elements, device)

    def drop(self, h: Tensor, state: Tensor | None) -> Tensor:
        """Return h (B, ...) with dropout; unchanged where `state` is None.

        Something is dropped where its byte is below `dropped`, with probability dropped / 256.
        """
        if state is None or self.dropped == 0:
            return h
        *tokens, channels = self._dropped_shape
        drawn = drawn_bytes(state, torch.Size((len(h), channels, 1, math.prod(tokens))))
        shape = (channels, 1, 1) if h.dim() == 4 else self._dropped_shape
        kept = (drawn >= self.dropped).view(len(h), *shape)
        return h * kept.to(h.dtype).mul_(256 / (256 - self.dropped))

    def outputs(self, x: Tensor, dropout_state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the activation h, (B, ...), and the features for the next layer, detached."""
        mixed = self.dtype != torch.float32
        with torch.autocast(x.device.type, dtype=torch.bfloat16) if mixed else nullcontext():
            h: Tensor = self.module(x.detach())
            if h.shape[0] != x.shape[0]:
                raise UserError(
                    f"layer {self.spec.index} ({type(self.module).__name__}) returns "
                    f"{tuple(h.shape)} of {plural(x.shape[0], 'image')}: return one activation an "
                    "image, in the order of the images"
                )
            with torch.no_grad():
                features = hand_on(self.module, self.drop(h.detach(), dropout_state))
        return h.to(torch.promote_types(h.dtype, torch.float32)), _compact(features, self.dtype)


def identity(layer: ModuleLayer) -> str:
    """Return what decides the speed of a layer besides shapes: its structure and its code."""
    kinds = {type(part) for part in layer.modules() if not _is_torchs(type(part))}
    code = sorted(f"{kind.__module__}.{kind.__qualname__} {_source(kind)}" for kind in kinds)
    return "\n".join([str(layer), *code])


def _is_torchs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed in at a prompt
        return ""


def hand_on(module: nn.Module, h: Tensor) -> Tensor:
    """Return what a module hands on of its output h, (B, ...)."""
    change = getattr(module, "hand_on", None)
    return h if change is None else change(h)


def _compact(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Return features as they are behind a boundary: strides choose kernels, and so bits."""
    features = features.to(dtype)
    last = features.dim() == 4 and features.is_contiguous(memory_format=torch.channels_last)
    if last and not features.is_contiguous():
        return features
    return features.contiguous().view(-1).view(features.shape)
