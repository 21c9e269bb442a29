"""Architectures as plain data: an ordered chain of layers.

Shape legend: K channels, C classes, S pixels a side (images are square).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, overload

from rayff.config.errors import UserError

IMAGE_SIZE = 32
"""Pixels a side of every network's input (DeeperForward, section 4)."""

Join = Literal["none", "add", "concat"]


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
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the convolution's weights."""
        return self.out_channels, self.in_channels, self.kernel_size, self.kernel_size

    @property
    def num_weights(self) -> int:
        """Number of weights of the convolution."""
        return math.prod(self.weight_shape)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An ordered chain of layers; a slice of it is an architecture again."""

    name: str
    num_classes: int
    layers: tuple[LayerSpec, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise UserError(f"architecture {self.name!r} has no layers")
        if type(self.num_classes) is not int or self.num_classes < 2:
            raise UserError(
                f"architecture {self.name!r} needs 2 classes or more, not {self.num_classes}"
            )
        for layer in self.layers:
            self._check_groups(layer)
        for before, after in zip(self.layers, self.layers[1:], strict=False):
            if (before.feature_channels, before.out_size) != (after.in_channels, after.in_size):
                raise UserError(
                    f"architecture {self.name!r}: layer {before.index} gives "
                    f"{before.feature_channels} channels of {before.out_size}x{before.out_size} "
                    f"pixels, but layer {after.index} expects {after.in_channels} of "
                    f"{after.in_size}x{after.in_size}"
                )
            if before.index + 1 != after.index:
                raise UserError(
                    f"architecture {self.name!r}: layer {before.index} is followed by layer "
                    f"{after.index}; number the layers one by one"
                )
        self._check_shortcuts()

    def _check_groups(self, layer: LayerSpec) -> None:
        if layer.out_channels % self.num_classes == 0:
            return
        width = -(-self.layers[0].out_channels // self.num_classes) * self.num_classes
        raise UserError(
            f"architecture {self.name!r}: the {layer.out_channels} channels of layer "
            f"{layer.index} do not split into {self.num_classes} equal groups, one a class; "
            f"widen the network with --width {width} (or another multiple of {self.num_classes})"
        )

    def _check_shortcuts(self) -> None:
        """Raise a UserError where a shortcut comes from nowhere or does not fit what it joins."""
        first = self.layers[0]  # a slice may begin inside a block
        carried = first.shortcut_channels, first.shortcut_size
        for layer in self.layers:
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
    def __getitem__(self, key: int) -> LayerSpec: ...
    @overload
    def __getitem__(self, key: slice) -> Architecture: ...
    def __getitem__(self, key: int | slice) -> LayerSpec | Architecture:
        if isinstance(key, slice):
            return dataclasses.replace(self, layers=self.layers[key])
        return self.layers[key]

    @property
    def image_channels(self) -> int:
        """Channels that enter the first layer."""
        return self.layers[0].in_channels

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
        elements = layer.in_channels * layer.in_size**2
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
            layers = tuple(LayerSpec(**layer) for layer in data["layers"])
            return cls(name=str(data["name"]), num_classes=data["num_classes"], layers=layers)
        except (KeyError, TypeError) as error:
            raise UserError(f"this is no description of an architecture: {error}") from error
