"""Architectures as plain data: an ordered chain of layers.

The layers of a network are convolutions (LayerSpec), or modules of any kind (ModuleSpec).

Shape legend: K channels, C classes, S pixels a side (images are square), F single features,
T tokens of D features.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args, overload

from rayff.config.errors import UserError

Join = Literal["none", "add", "concat"]
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One channel-wise convolution layer, the smallest unit with a loss of its own."""

    index: int
    """Number of the layer in the whole network, from 0; the same in a slice of it."""
    in_channels: int
    out_channels: int
    """Channels of the convolution itself, before a concatenated shortcut."""
    kernel_size: int
    in_size: int
    """Pixels a side of the features that enter, before the pool."""
    stride: int = 1
    pool: bool = False
    """A 2x2 average pool comes before the convolution."""
    opens_block: bool = False
    """The features that enter are the shortcut of the block that starts here."""
    join: Join = "none"
    """How the block's shortcut meets this layer's output."""
    shortcut_channels: int = 0
    """Channels of the shortcut that this layer's block carries; 0 outside a block."""
    shortcut_size: int = 0
    """Pixels a side of that shortcut; 0 outside a block."""

    def __post_init__(self) -> None:
        counts = {
            "index": 0,
            "in_channels": 1,
            "out_channels": 1,
            "kernel_size": 1,
            "in_size": 2 if self.pool else 1,
            "stride": 1,
            "shortcut_channels": 0,
            "shortcut_size": 0,
        }
        for name, least in counts.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise self._refused(name, f"a whole number of {least} or more")
        for name in ("pool", "opens_block"):
            if type(getattr(self, name)) is not bool:
                raise self._refused(name, "true or false")
        if self.join not in get_args(Join):
            raise self._refused("join", " or ".join(get_args(Join)))
        if self.kernel_size % 2 == 0:  # padded by half of it, an even one would change the size
            raise self._refused("kernel_size", "odd")
        if self.stride > (widest := max(self.in_size, self.kernel_size)):
            raise self._refused("stride", f"{widest} or less, the pixels a side")

    def _refused(self, name: str, expected: str) -> UserError:
        value = getattr(self, name)
        return UserError(f"layer {self.index!r}: {name} must be {expected}, not {value!r}")

    @property
    def out_size(self) -> int:
        """Pixels a side of the output."""
        entering = self.in_size // 2 if self.pool else self.in_size
        return -(-entering // self.stride)

    @property
    def feature_channels(self) -> int:
        """Channels that the next layer receives."""
        return self.out_channels + (self.shortcut_channels if self.join == "concat" else 0)

    @property
    def in_shape(self) -> Shape:
        """Shape of the features of an image that enter, (K, S, S)."""
        return self.in_channels, self.in_size, self.in_size

    @property
    def out_shape(self) -> Shape:
        """Shape of an image's activation, which the loss sees, (K, S, S)."""
        return self.out_channels, self.out_size, self.out_size

    @property
    def feature_shape(self) -> Shape:
        """Shape of the features of an image that the next layer receives, (K, S, S)."""
        return self.feature_channels, self.out_size, self.out_size

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the convolution's weights."""
        return self.out_channels, self.in_channels, self.kernel_size, self.kernel_size

    @property
    def num_weights(self) -> int:
        """Number of weights of the convolution."""
        return math.prod(self.weight_shape)

    @property
    def num_products(self) -> int:
        """Multiply-adds of the convolution of an image."""
        return self.num_weights * self.out_size**2


@dataclass(frozen=True, kw_only=True)
class ModuleSpec:
    """One layer that is a module of any kind, by the shapes of an image: it joins no shortcut.

    A shape is (K, H, W) for a map, (F,) for single features and (T, D) for tokens.
    """

    index: int
    """Number of the layer in the whole network, from 0; the same in a slice of it."""
    in_shape: Shape
    """Of the features that enter."""
    out_shape: Shape
    """Of the activation, which the loss sees."""
    feature_shape: Shape
    """Of the features that the next layer receives."""
    num_weights: int
    """Number of parameters that learn, those of the loss aside."""
    num_products: int
    """Multiply-adds of an image in the forward pass, as counted by torch; an estimate."""

    opens_block: ClassVar[bool] = False
    join: ClassVar[Join] = "none"
    shortcut_channels: ClassVar[int] = 0
    shortcut_size: ClassVar[int] = 0

    def __post_init__(self) -> None:
        for name in ("index", "num_weights", "num_products"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise self._refused(name, "a whole number of 0 or more")
        for name in ("in_shape", "out_shape", "feature_shape"):
            shape = getattr(self, name)
            whole = isinstance(shape, tuple) and all(type(n) is int and n > 0 for n in shape)
            if not (whole and 1 <= len(shape) <= 3):
                raise self._refused(name, "1 to 3 whole numbers of 1 or more")

    def _refused(self, name: str, expected: str) -> UserError:
        value = getattr(self, name)
        return UserError(f"layer {self.index!r}: {name} must be {expected}, not {value!r}")

    @property
    def in_channels(self) -> int:
        """Channels of the features that enter: K, F or D."""
        return _channels(self.in_shape)

    @property
    def out_channels(self) -> int:
        """Channels of the activation: K, F or D."""
        return _channels(self.out_shape)

    @property
    def out_size(self) -> int:
        """Pixels a side of the activation's map, which a loss may divide into cells.

        1 for single features, and for tokens, which count as the pixels of a row; of a map that is
        not square the greatest common divisor of its sides.
        """
        return math.gcd(*self.out_shape[1:]) if len(self.out_shape) == 3 else 1


def _channels(shape: Shape) -> int:
    return shape[-1] if len(shape) == 2 else shape[0]


Spec: TypeAlias = LayerSpec | ModuleSpec
"""A layer of either kind. Both have index, in_shape, out_shape, feature_shape, in_channels,
out_channels, out_size, num_weights and num_products."""


@dataclass(frozen=True, kw_only=True)
class ModuleSource:
    """How the modules of a network are made, wherever it is built: by calling its function."""

    function: str
    """Registered name or import path."""
    image_channels: int
    image_size: int
    width: int | None

    def __post_init__(self) -> None:
        width = [] if self.width is None else [self.width]
        numbers = [self.image_channels, self.image_size, *width]
        if type(self.function) is not str or not all(type(n) is int and n > 0 for n in numbers):
            raise UserError(f"{self!r} does not say how modules are made")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An ordered chain of layers; a slice of it is an architecture again."""

    name: str
    num_classes: int
    layers: tuple[Spec, ...]
    source: ModuleSource | None = None
    """How the modules of the layers are made; None for convolutions."""

    def __post_init__(self) -> None:
        if not self.layers:
            raise UserError(f"architecture {self.name!r} has no layers")
        if len(self.convolutions if self.source is None else self.modules) != len(self):
            raise UserError(
                f"architecture {self.name!r}: its layers are either all modules, which a "
                "function makes, or all convolutions"
            )
        if type(self.num_classes) is not int or self.num_classes < 2:
            raise UserError(
                f"architecture {self.name!r} needs 2 classes or more, not {self.num_classes}"
            )
        for before, after in zip(self.layers, self.layers[1:], strict=False):
            if before.feature_shape != after.in_shape:
                raise UserError(
                    f"architecture {self.name!r}: layer {before.index} gives "
                    f"{_shown(before.feature_shape, 'channels')}, but layer {after.index} expects "
                    f"{_shown(after.in_shape)}"
                )
            if before.index + 1 != after.index:
                raise UserError(
                    f"architecture {self.name!r}: layer {before.index} is followed by layer "
                    f"{after.index}; number the layers one by one"
                )
        self._check_shortcuts()

    def check_groups(self) -> None:
        """Raise a UserError where a layer's channels do not split into a group for each class."""
        for layer in self.layers:
            if layer.out_channels % self.num_classes:
                narrow = self.layers[0].out_channels
                width = -(-narrow // self.num_classes) * self.num_classes
                millions = self.num_weights * (width / narrow) ** 2 / 1e6
                raise UserError(
                    f"architecture {self.name!r}: the {layer.out_channels} channels of layer "
                    f"{layer.index} do not split into {self.num_classes} equal groups, one a "
                    f"class; widen the network with --width {width} (or another multiple of "
                    f"{self.num_classes}; it has about {millions:,.0f} million weights then), or "
                    "use a loss with a head, such as --loss linear"
                )

    def _check_shortcuts(self) -> None:
        """Raise a UserError where a shortcut comes from nowhere or does not fit what it joins."""
        layers = self.convolutions
        # a slice may begin inside a block
        carried = (layers[0].shortcut_channels, layers[0].shortcut_size) if layers else (0, 0)
        for layer in layers:
            if layer.opens_block:
                carried = layer.in_channels, layer.in_size
            channels, size = carried
            fits = layer.out_channels == channels or layer.join == "concat"
            same_size = layer.out_size in (size, size // 2)
            if (
                (layer.shortcut_channels, layer.shortcut_size) != carried
                or (channels == 0) != (size == 0)
                or (layer.join != "none" and not (channels and fits and same_size))
            ):
                raise UserError(
                    f"architecture {self.name!r}: the shortcut of layer {layer.index} "
                    f"({layer.shortcut_channels} channels of {layer.shortcut_size}x"
                    f"{layer.shortcut_size} pixels, join {layer.join!r}) does not fit its block"
                )
            if layer.join != "none":
                carried = 0, 0

    def __len__(self) -> int:
        return len(self.layers)

    @overload
    def __getitem__(self, key: int) -> Spec: ...
    @overload
    def __getitem__(self, key: slice) -> Architecture: ...
    def __getitem__(self, key: int | slice) -> Spec | Architecture:
        if isinstance(key, slice):
            return dataclasses.replace(self, layers=self.layers[key])
        return self.layers[key]

    @property
    def convolutions(self) -> tuple[LayerSpec, ...]:
        """The layers that are convolutions: all or none."""
        return tuple(layer for layer in self.layers if isinstance(layer, LayerSpec))

    @property
    def modules(self) -> tuple[ModuleSpec, ...]:
        """The layers that are modules: none or all."""
        return tuple(layer for layer in self.layers if isinstance(layer, ModuleSpec))

    @property
    def image_channels(self) -> int:
        """Channels that enter the first layer."""
        return self.layers[0].in_channels

    @property
    def image_size(self) -> int:
        """Pixels a side of the images that enter the first layer."""
        return self.layers[0].in_shape[-1]

    @property
    def image_shape(self) -> Shape:
        """Shape of an image, (K, S, S)."""
        return self.layers[0].in_shape

    @property
    def num_weights(self) -> int:
        """Number of weights of all layers."""
        return sum(layer.num_weights for layer in self.layers)

    def boundary_elements(self, position: int) -> int:
        """Return the number of elements an image sends over the cut before layer `position`.

        Inside a block both features and shortcut cross; at a block's end they are the same
        tensor and cross once.
        """
        layer = self.layers[position]
        elements = math.prod(layer.in_shape)
        if layer.shortcut_channels and not layer.opens_block:
            elements += layer.shortcut_channels * layer.shortcut_size**2
        return elements

    def stages(self, cuts: tuple[int, ...]) -> list[Architecture]:
        """Return the slices that `cuts` (positions in 1..len-1, ascending) make of the chain."""
        bounds = (0, *cuts, len(self))
        return [self[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]

    def to_dict(self) -> dict[str, Any]:
        """Return the architecture as JSON-serialisable data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        """Return the architecture of such data; UserError where a key is missing or unknown."""
        try:
            made = data.get("source")
            source = None if made is None else ModuleSource(**made)
            layers: list[Spec] = []
            for layer in data["layers"]:
                if source is None:
                    layers.append(LayerSpec(**layer))
                else:
                    listed = {name: v for name, v in layer.items() if isinstance(v, list)}
                    shapes = {name: tuple(v) for name, v in listed.items()}
                    layers.append(ModuleSpec(**{**layer, **shapes}))
            return cls(
                name=str(data["name"]),
                num_classes=data["num_classes"],
                layers=tuple(layers),
                source=source,
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"this is no description of an architecture: {error}") from error


def _shown(shape: Shape, unit: str = "") -> str:
    """Return the shape of an image's features in words."""
    if len(shape) == 3:
        return f"{shape[0]} {unit}{' ' if unit else ''}of {shape[1]}x{shape[2]} pixels"
    return f"{shape[0]} features" if len(shape) == 1 else f"{shape[0]} tokens of {shape[1]}"
