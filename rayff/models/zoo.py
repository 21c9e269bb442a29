"""The architectures, as tables like those of the paper.

A row is one layer; channels are multiples of the network's width, which is the number of
channels of its first layer. Names follow the ResNet that a network mirrors, whose number counts
a linear head that a Forward-Forward network does not have: `resnet34` has 33 layers.

Networks of modules are made by a function, which is called again wherever layers are built.
"""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rayff.config.errors import UserError
from rayff.config.registry import ImportPathError, Registry
from rayff.models.architecture import Architecture, Join, LayerSpec, ModuleSource

IMAGE_SIZE = 32
"""Pixels a side of the images of a network that names no size (DeeperForward, section 4)."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of an architecture table; the rest of a LayerSpec follows from the lines before."""

    channels: int
    kernel: int = 3
    stride: int = 1
    pool: bool = False
    opens_block: bool = False
    join: Join = "none"


@dataclass(frozen=True)
class ModuleRow:
    """One layer of a network of modules; a function may give `make` alone where loss is None."""

    make: Callable[[], Any]
    """Returns the layer's torch.nn.Module with initial weights, a new one in each call."""
    loss: Any = None
    """Its local loss, by name or as the class itself; None for that of `--loss`."""


def chain(
    name: str,
    rows: Sequence[Row],
    num_classes: int,
    image_channels: int,
    image_size: int = IMAGE_SIZE,
) -> Architecture:
    """Fill in channels and sizes row by row.

    Raises:
        UserError: images of that size do not fit strides, pools and shortcuts.
    """
    try:
        return _chain(name, rows, num_classes, image_channels, image_size)
    except UserError as error:
        shrinks = math.prod(row.stride * (2 if row.pool else 1) for row in rows)
        if image_size % shrinks == 0:
            raise
        fitting = max(1, round(image_size / shrinks)) * shrinks
        raise UserError(
            f"--image-size {image_size} does not fit --arch {name} ({error}): use a multiple of "
            f"{shrinks}, such as --image-size {fitting}"
        ) from error


def _chain(
    name: str, rows: Iterable[Row], num_classes: int, image_channels: int, image_size: int
) -> Architecture:
    layers: list[LayerSpec] = []
    channels, size, shortcut = image_channels, image_size, (0, 0)
    for index, row in enumerate(rows):
        if row.opens_block:
            shortcut = (channels, size)
        layer = LayerSpec(
            index=index,
            in_channels=channels,
            out_channels=row.channels,
            kernel_size=row.kernel,
            in_size=size,
            stride=row.stride,
            pool=row.pool,
            opens_block=row.opens_block,
            join=row.join,
            shortcut_channels=shortcut[0],
            shortcut_size=shortcut[1],
        )
        layers.append(layer)
        channels, size = layer.feature_channels, layer.out_size
        if row.join != "none":
            shortcut = (0, 0)
    return Architecture(name=name, num_classes=num_classes, layers=tuple(layers))


def resnet(width: int) -> list[Row]:
    """17 layers: a stem and four groups of two blocks.

    A group's first block adds its shortcut, its second concatenates it and so doubles the
    channels for the next group; behind the last group nothing is left to join.
    """
    return _resnet(width, [Row(channels=width)])


def resnet_imagenet(width: int) -> list[Row]:
    """18 layers: those of `resnet` behind a stem of two that brings 224 pixels to 56."""
    return _resnet(width, [Row(channels=width, kernel=7, stride=2), Row(channels=width, stride=2)])


def _resnet(width: int, rows: list[Row]) -> list[Row]:
    """Return the rows of a stem with the four groups of `resnet` behind them."""
    for group in range(4):
        planes = width * 2**group
        rows += [
            Row(channels=planes, stride=1 if group == 0 else 2, opens_block=True),
            Row(channels=planes, join="add"),
            Row(channels=planes, opens_block=group < 3),
            Row(channels=planes, join="concat" if group < 3 else "none"),
        ]
    return rows


def deep_resnet(width: int, blocks: tuple[int, ...]) -> list[Row]:
    """Return a stem and groups of two-layer blocks."""

    def block(planes: int, stride: int, before: int) -> list[Row]:
        return [
            Row(channels=planes, stride=stride, opens_block=True),
            _closing(planes, before, kernel=3),
        ]

    return _grouped(width, blocks, block, expansion=1)


def bottleneck_resnet(width: int, blocks: tuple[int, ...]) -> list[Row]:
    """Return a stem and groups of 1x1, 3x3, 1x1 blocks that leave four times the planes."""

    def block(planes: int, stride: int, before: int) -> list[Row]:
        return [
            Row(channels=planes, kernel=1, opens_block=True),
            Row(channels=planes, stride=stride),
            _closing(4 * planes, before, kernel=1),
        ]

    return _grouped(width, blocks, block, expansion=4)


def _grouped(
    width: int,
    blocks: tuple[int, ...],
    block: Callable[[int, int, int], list[Row]],
    expansion: int,
) -> list[Row]:
    """Return a stem and groups of blocks; each group doubles the planes and halves the pixels.

    `block` makes the rows of one block from its planes, its stride and the channels before it. A
    group's first block widens: its last layer gives only the channels that are new, and the
    concatenated shortcut brings the others.
    """
    rows, before = [Row(channels=width)], width
    for group, num_blocks in enumerate(blocks):
        planes = width * 2**group
        for position in range(num_blocks):
            stride = 2 if group > 0 and position == 0 else 1
            rows += block(planes, stride, before)
            before = expansion * planes
    return rows


def _closing(channels_after: int, channels_before: int, kernel: int) -> Row:
    """Return a block's last layer: added where the channels match, else concatenated."""
    if channels_after == channels_before:
        return Row(channels=channels_after, kernel=kernel, join="add")
    return Row(channels=channels_after - channels_before, kernel=kernel, join="concat")


def plain(width: int) -> list[Row]:
    """17 layers as in `resnet`, without shortcuts."""
    rows = [Row(channels=width)]
    for group in range(4):
        planes = width * 2**group
        rows += [Row(channels=planes, stride=1 if group == 0 else 2)]
        rows += [Row(channels=planes)] * 3
    return rows


def vgg(width: int) -> list[Row]:
    """14 layers: 1, 1 | pool 2 x3 | pool 4 x3 | pool 8 x3 | pool 8 x3 times the width."""
    rows = [Row(channels=width)] * 2
    for factor in (2, 4, 8, 8):
        rows += [Row(channels=factor * width, pool=True)]
        rows += [Row(channels=factor * width)] * 2
    return rows


def tinycnn(width: int) -> list[Row]:
    """4 layers: 5x5 | pool 5x5 | pool 3x3 | 3x3."""
    return [
        Row(channels=width, kernel=5),
        Row(channels=2 * width, kernel=5, pool=True),
        Row(channels=4 * width, kernel=3, pool=True),
        Row(channels=4 * width, kernel=3),
    ]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A named architecture: its table and its width."""

    rows: Callable[[int], list[Row]]
    width: int
    image_size: int = IMAGE_SIZE


ARCHITECTURES: Registry[Any] = Registry("architecture", "--arch")
"""By name, entries of convolutions and functions of modules; by import path a function
`(num_classes, image_channels, image_size, width)` that returns an Architecture, or a list of Row,
ModuleRow or callables."""
ARCHITECTURES.add("resnet", Entry(rows=resnet, width=100))
ARCHITECTURES.add("vgg", Entry(rows=vgg, width=70))
ARCHITECTURES.add("tinycnn", Entry(rows=tinycnn, width=100))
ARCHITECTURES.add("resnet20", Entry(rows=lambda width: deep_resnet(width, (3, 3, 3)), width=100))
ARCHITECTURES.add(
    "resnet34", Entry(rows=lambda width: deep_resnet(width, (3, 4, 6, 3)), width=100)
)
ARCHITECTURES.add(
    "resnet101", Entry(rows=lambda width: bottleneck_resnet(width, (3, 4, 23, 3)), width=70)
)
ARCHITECTURES.add("resnet_large", Entry(rows=resnet, width=300))
ARCHITECTURES.add("resnet_imagenet", Entry(rows=resnet_imagenet, width=100, image_size=224))
ARCHITECTURES.add("plain17", Entry(rows=plain, width=100))
CONVOLUTIONAL = ARCHITECTURES.names
"""Those that the fast rule trains."""
ARCHITECTURES.add("vgg8b", "rayff.learning.vggb:vgg8b")
ARCHITECTURES.add("vgg11b", "rayff.learning.vggb:vgg11b")

DESCRIBE = "rayff.learning.modules:describe"
"""Import path of what finds the shapes of modules: it needs torch."""


def default_image_size(name: str) -> int:
    """Return the pixels a side of the images that an architecture is made for."""
    entry = ARCHITECTURES.load(name)
    return entry.image_size if isinstance(entry, Entry) else IMAGE_SIZE


def architecture(
    name: str,
    *,
    num_classes: int,
    image_channels: int,
    image_size: int | None = None,
    width: int | None = None,
) -> Architecture:
    """Return the architecture of that name or import path.

    Args:
        name: such as "resnet", or "package.module:function".
        num_classes: C.
        image_channels: 1 or 3.
        image_size: pixels a side; None for the architecture's own.
        width: channels of the first layer; None for the architecture's own.

    Raises:
        UserError: an unknown name, channels that the classes do not divide, other input channels,
            a size that strides and pools do not fit, a function that does not return an
            architecture, or modules that do not fit each other.
    """
    entry = ARCHITECTURES.load(name)
    if image_channels not in (1, 3):
        raise UserError(
            f"layer 0 of {name!r} takes images of 1 or 3 channels, not {image_channels}; "
            "convert the images to grey or RGB"
        )
    if width is not None and width < 1:
        raise UserError(f"--width must be 1 or more, not {width}")
    size = default_image_size(name) if image_size is None else image_size
    if isinstance(entry, Entry):
        rows = entry.rows(entry.width if width is None else width)
        return chain(name, rows, num_classes, image_channels, size)
    source = ModuleSource(
        function=name, image_channels=image_channels, image_size=size, width=width
    )
    made = _call(entry, source, num_classes)
    if isinstance(made, Architecture):
        if made.image_shape != (image_channels, size, size):
            raise UserError(
                f"--arch {name} returned a network for images of shape {made.image_shape}, and "
                f"was asked for {(image_channels, size, size)}: use its arguments image_channels "
                "and image_size"
            )
        return made
    if isinstance(made, list) and made and all(isinstance(row, Row) for row in made):
        return chain(name, made, num_classes, image_channels, size)
    describe: Callable[..., Architecture] = pkgutil.resolve_name(DESCRIBE)
    return describe(source, _module_rows(made, source), num_classes)


def module_rows(source: ModuleSource, num_classes: int) -> list[ModuleRow]:
    """Call the function of a network of modules again, and return one row a layer.

    Raises:
        ImportPathError: it cannot be imported, fails, or does not return modules any more.
    """
    function = ARCHITECTURES.load(source.function)
    try:
        return _module_rows(_call(function, source, num_classes), source)
    except UserError as error:
        raise ImportPathError(str(error)) from error


def _module_rows(made: Any, source: ModuleSource) -> list[ModuleRow]:
    """Return what a function returned as rows."""
    if isinstance(made, Sequence) and made and all(map(_is_module_row, made)):
        return [row if isinstance(row, ModuleRow) else ModuleRow(row) for row in made]
    raise UserError(
        f"--arch {source.function} returned {_kinds(made)}: return an Architecture, a list of "
        "Row, or a list of ModuleRow or callables that each make a module"
    )


def _is_module_row(row: Any) -> bool:
    return callable(row.make if isinstance(row, ModuleRow) else row)


def _kinds(made: Any) -> str:
    """Return what a value is made of, such as `list of Row and int`."""
    kinds = dict.fromkeys(type(row).__name__ for row in made) if isinstance(made, list) else {}
    return type(made).__name__ + (f" of {' and '.join(kinds)}" if kinds else "")


def _call(function: Any, source: ModuleSource, num_classes: int) -> Any:
    """Return what an architecture function returns."""
    options = {
        "num_classes": num_classes,
        "image_channels": source.image_channels,
        "image_size": source.image_size,
        "width": source.width,
    }
    try:
        return function(**options)
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        shown = ", ".join(f"{name}={value}" for name, value in options.items())
        raise UserError(
            f"--arch {source.function}: calling it with {shown} failed ({type(error).__name__}: "
            f"{error})"
        ) from error
