"""Networks of modules as plain data; found by its import path, since models need no torch.

It imports torch's counter of operations, and with its first use torch's compiler: a stage, which
gets the shapes with its layers, needs neither.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rayff.config.errors import UserError
from rayff.learning.layer_state import check_savable, learned_parameters
from rayff.learning.losses import describe_error
from rayff.learning.module_layer import hand_on, make_module
from rayff.models.architecture import (
    Architecture,
    ModuleSource,
    ModuleSpec,
    Shape,
)
from rayff.models.zoo import ModuleRow


def describe(source: ModuleSource, rows: Sequence[ModuleRow], num_classes: int) -> Architecture:
    """Return a network of modules, whose shapes are found without memory and without computing.

    Each module is run on features of two images on torch's meta device.

    Raises:
        UserError: a module cannot be made, does not take the features of the one before, or has
            parameters that another layer has too.
    """
    shape: Shape = (source.image_channels, source.image_size, source.image_size)
    specs: list[ModuleSpec] = []
    owners: dict[nn.Parameter, int] = {}
    for index, row in enumerate(rows):
        with torch.device("meta"):
            module = make_module(row, index, 0, f"--arch {source.function}").to("meta")
        where = f"layer {index} of --arch {source.function} ({type(module).__name__})"
        check_savable(module, where)
        for parameter in module.parameters():
            if (owner := owners.setdefault(parameter, index)) != index:
                raise UserError(
                    f"{where} has parameters that layer {owner} has too: make a module of its "
                    "own for each layer"
                )
        specs.append(_spec(index, module, shape, where))
        shape = specs[-1].feature_shape
    return Architecture(
        name=source.function, num_classes=num_classes, layers=tuple(specs), source=source
    )


def _spec(index: int, module: nn.Module, shape: Shape, where: str) -> ModuleSpec:
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), torch.device("meta"), counter:
            h = module(torch.empty(2, *shape))
        features = hand_on(module, h) if isinstance(h, Tensor) else h
    except Exception as error:  # the user's code may raise anything
        before = f"layer {index - 1} hands on" if index else "an image has"
        raise UserError(
            f"{where} cannot take the shape (B, {', '.join(map(str, shape))}) that {before}: "
            f"{describe_error(error, module)}"
        ) from error
    shapes = {}
    for name, value in {"returns": h, "hands on": features}.items():
        if not (isinstance(value, Tensor) and len(value) == 2 and 2 <= value.dim() <= 4):
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UserError(
                f"{where} {name} {found} of two images: it must be a tensor of shape "
                "(B, K, H, W), (B, T, D) or (B, F)"
            )
        shapes[name] = tuple(value.shape[1:])
    learned = learned_parameters(module).values()
    return ModuleSpec(
        index=index,
        in_shape=shape,
        out_shape=shapes["returns"],
        feature_shape=shapes["hands on"],
        num_weights=sum(parameter.numel() for parameter in learned),
        num_products=counter.get_total_flops() // 4,  # two operations, two images
    )
