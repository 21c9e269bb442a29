"""Profile files: what was measured on a device, as JSON that plans for other clusters start from.

A file holds what was measured, and says of the rest that it is assumed. Layers are timed, at one
or several batch sizes and with and without neighbours on the same node; where only the step of
a whole network was timed, the layers are modelled when they are asked for (`Roofline`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rayff.config.errors import UserError
from rayff.config.registry import is_import_path
from rayff.config.text import is_path, is_plain
from rayff.config.train_config import Precision
from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture
from rayff.partition.layer_costs import LayerTime
from rayff.partition.roofline import least_s, optimizer_bytes

FORMAT = 1
ELEMENT_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2}
FOLDER = Path(__file__).with_name("profiles")
"""The profiles that come with rayff."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TimedLayer(LayerTime):
    """A layer's time, and its size, by which another network is noticed."""

    weights: int
    feature_bytes: int
    """Of an image, over a boundary behind it."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What the layers of a network took, each timed alone."""

    network: str
    loss: str
    batch_size: int
    neighbours: int
    """Other devices of the node that timed at the same moment."""
    layers: tuple[TimedLayer, ...]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step of a whole network took."""

    network: str
    batch_size: int
    step_s: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Rates of a device, and whole steps; layers are modelled from them.

    Of each layer the longer of its operations and bytes at these rates, times the ratio of the
    measured step to the sum of all layers: the network's own, or that of the network whose step
    has the nearest number of operations.
    """

    operations_per_s: float
    bytes_per_s: float
    steps: tuple[Step, ...]


@dataclass(frozen=True, kw_only=True)
class LinkRate:
    """Speed of a link, in each direction."""

    bytes_per_s: float
    latency_s: float
    source: str


@dataclass(frozen=True, kw_only=True)
class SumRate:
    """Speed of all-reduces between devices of a node."""

    bytes_per_s: float
    call_s: float
    source: str


@dataclass(frozen=True, kw_only=True)
class RayTimes:
    """What Ray takes."""

    copy_bytes_per_s: float | None
    """Into the object store and out of it; None where a direct transport makes no copy."""
    message_s: float
    """Of an actor for each call."""
    call_s: float
    """Of the driver for each call of an actor."""
    source: str


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """What was measured on a device."""

    format: int
    hardware: str
    date: str
    torch: str
    precision: Precision
    threads: int
    command: str
    devices_per_node: int
    node: LinkRate
    network: LinkRate
    ray: RayTimes
    node_all_reduce: SumRate | None
    roofline: Roofline | None
    timings: tuple[Timing, ...]

    def networks(self) -> list[str]:
        """Return the networks whose layers were timed."""
        return list(dict.fromkeys(timing.network for timing in self.timings))

    def levels(self, network: str, loss: str) -> list[int]:
        """Return the numbers of neighbours with which a network was timed, 0 if none was."""
        found = {t.neighbours for t in self.timings if (t.network, t.loss) == (network, loss)}
        return sorted(found) or [0]


@dataclass(frozen=True, kw_only=True)
class LayerModel:
    """Seconds of a layer as a straight line over the images."""

    image_s: float
    """Of each image."""
    fixed_s: float
    """Of a batch, whatever the images; the optimizer included."""


@dataclass(frozen=True, kw_only=True)
class NetworkModel:
    """Times of a network's layers on a device, and where they are from."""

    layers: tuple[LayerModel, ...]
    batch_sizes: tuple[int, ...]
    """Those that were measured."""
    source: str


def network_model(
    profile: DeviceProfile, network: Architecture, loss: str, neighbours: int
) -> NetworkModel:
    """Return what a network's layers take on a device.

    Args:
        profile: of the device.
        network: all layers.
        loss: local loss of every layer.
        neighbours: other devices of the node that work at the same time; of those measured the
            largest number up to it, and neighbours never make a layer faster.

    Raises:
        UserError: the profile has no times of this network.
    """
    timed = [t for t in profile.timings if (t.network, t.loss) == (network.name, loss)]
    if not timed:
        return _modelled(profile, network, loss)
    for timing in timed:
        _check_layers(timing, network, profile.precision)
    reached = [t for t in timed if t.neighbours <= neighbours]
    fewest = min(t.neighbours for t in timed)
    used = reached or [t for t in timed if t.neighbours == fewest]
    sizes = sorted({timing.batch_size for timing in used})
    columns = []
    for size in sizes:
        rows = [timing.layers for timing in used if timing.batch_size == size]
        columns.append([_slowest(layers) for layers in zip(*rows, strict=True)])
    return NetworkModel(
        layers=tuple(_line(sizes, times) for times in zip(*columns, strict=True)),
        batch_sizes=tuple(sizes),
        source=f"layers timed on {profile.hardware}, {profile.date}",
    )


def _slowest(times: Sequence[LayerTime]) -> LayerTime:
    names = [field.name for field in dataclasses.fields(LayerTime)]
    return LayerTime(**{name: max(getattr(time, name) for time in times) for name in names})


def _line(sizes: Sequence[int], times: Sequence[LayerTime]) -> LayerModel:
    """Return the line through the smallest and the largest batch, rising and not below 0.

    One batch size alone is proportional to the images.
    """
    (few, least), (many, most) = (sizes[0], times[0].images_s), (sizes[-1], times[-1].images_s)
    proportional = most / many
    rise = (most - least) / (many - few) if many > few else proportional
    image_s = min(max(rise, 0.0), proportional)
    return LayerModel(
        image_s=image_s, fixed_s=most - image_s * many + max(t.optimizer_s for t in times)
    )


def _modelled(profile: DeviceProfile, network: Architecture, loss: str) -> NetworkModel:
    roofline = profile.roofline
    if roofline is None or loss != "goodness":
        known = dict.fromkeys(f"{t.network} with {t.loss}" for t in profile.timings)
        raise UserError(
            f"the profile of {profile.hardware} has no times of {network.name} with --loss "
            f"{loss}, but of {', '.join(known) or 'networks with goodness'}; measure it there "
            f"with `rayff plan --arch {network.name} --loss {loss} --save-profile FILE`"
        )
    step = min(roofline.steps, key=lambda step: _distance(step, network))
    measured = architecture(step.network, num_classes=10, image_channels=3)
    ratio = step.step_s / sum(_least(profile, roofline, measured, step.batch_size))
    fixed = [optimizer_bytes(layer) / roofline.bytes_per_s for layer in network.layers]
    least = _least(profile, roofline, network, step.batch_size)
    layers = [
        LayerModel(image_s=ratio * max(0.0, s - own) / step.batch_size, fixed_s=ratio * own)
        for s, own in zip(least, fixed, strict=True)
    ]
    of = "" if step.network == network.name else f" of {step.network}"
    return NetworkModel(
        layers=tuple(layers),
        batch_sizes=(step.batch_size,),
        source=(
            f"layer times MODELLED from a total: operations and bytes at rates measured on "
            f"{profile.hardware} ({profile.date}), times {ratio:.2f}, the measured step{of} over "
            f"the sum of all layers ({step.source})"
        ),
    )


def _distance(step: Step, network: Architecture) -> tuple[bool, float]:
    """Return how far a measured step is from a network, its own first."""
    measured = architecture(step.network, num_classes=10, image_channels=3)
    products = [sum(layer.num_products for layer in each.layers) for each in (measured, network)]
    return step.network != network.name, abs(math.log(products[0] / max(1, products[1])))


def _least(
    profile: DeviceProfile, roofline: Roofline, network: Architecture, images: int
) -> list[float]:
    return [
        least_s(
            layer,
            images,
            bytes_per_element=ELEMENT_BYTES[profile.precision],
            operations_per_s=roofline.operations_per_s,
            bytes_per_s=roofline.bytes_per_s,
        )
        for layer in network.layers
    ]


def feature_bytes(network: Architecture, precision: Precision) -> list[int]:
    """Return the bytes of an image over a boundary behind each layer; 0 behind the last."""
    cuts = range(1, len(network))
    onward = [network.boundary_elements(cut) * ELEMENT_BYTES[precision] for cut in cuts]
    return [*onward, 0]


def _check_layers(timing: Timing, network: Architecture, precision: Precision) -> None:
    """Raise a UserError where a network of that name has other layers than those timed."""
    found = [(layer.weights, layer.feature_bytes) for layer in timing.layers]
    weights = [layer.num_weights for layer in network.layers]
    here = list(zip(weights, feature_bytes(network, precision), strict=True))
    if len(found) != len(here):
        raise UserError(
            f"the profile's {timing.network} has {len(found)} layers, and this one {len(here)}: "
            "its times are those of another network; measure this one with --save-profile"
        )
    for index, (then, now) in enumerate(zip(found, here, strict=True)):
        if then != now:
            raise UserError(
                f"layer {index} of the profile's {timing.network} has {then[0]:,} weights and "
                f"sends {then[1]:,} bytes an image, and here {now[0]:,} and {now[1]:,}: its times "
                "are those of another --width, --image-size or task; measure this one with "
                "--save-profile"
            )


def profile_names() -> list[str]:
    """Return the names of the profiles that come with rayff."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def read_profile(name: str) -> DeviceProfile:
    """Return the profile that comes with rayff under that name, or that is in a file.

    Raises:
        UserError: there is none, or it is broken.
    """
    if name in profile_names():
        return read_profile_file(FOLDER / f"{name}.json")
    if not is_path(name) or not Path(name).exists():
        raise UserError(
            f"there is no profile {name!r}: name one of {', '.join(profile_names())}, or a file "
            "that `rayff plan --save-profile FILE` wrote"
        )
    return read_profile_file(Path(name))


def read_profile_file(name: Path) -> DeviceProfile:
    """Return the profile in a file.

    Raises:
        UserError: something in it is missing, unknown or no possible value.
    """
    try:
        data = json.loads(name.read_bytes())
    except OSError as error:
        raise UserError(f"profile {name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"profile {name} is not JSON; write one with `rayff plan --save-profile FILE`"
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise UserError(
            f"profile {name} has format {found!r}, and this rayff reads format {FORMAT}; measure "
            "again with `rayff plan --save-profile FILE`"
        )
    try:
        profile: DeviceProfile = _value(DeviceProfile, data, "")
        _check(profile)
    except _WrongError as error:
        raise UserError(f"profile {name}: {error}") from None
    return profile


def profile_json(profile: DeviceProfile) -> str:
    """Return the text of a profile's file."""
    return json.dumps(dataclasses.asdict(profile), indent=1, allow_nan=False) + "\n"


def merged(old: DeviceProfile, new: DeviceProfile) -> DeviceProfile:
    """Return the newer profile with the timings of other networks in the old one.

    Raises:
        UserError: they are of different devices.
    """
    for name in ("hardware", "torch", "precision", "threads"):
        before, now = getattr(old, name), getattr(new, name)
        if before != now:
            raise UserError(
                f"the file has a profile with {name} {before}, and here it is {now}: name another "
                "file"
            )
    known = {(timing.network, timing.loss) for timing in new.timings}
    others = [t for t in old.timings if (t.network, t.loss) not in known]
    return dataclasses.replace(new, timings=(*others, *new.timings))


_LEAST, _MOST = 1e-15, 1e18
"""Of a number in a file: so that no quotient is infinite."""


class _WrongError(Exception):
    """What is wrong in a file, in a clause."""


_POSITIVE = (
    *("bytes_per_s", "operations_per_s", "copy_bytes_per_s"),
    *("step_s", "batch_size", "threads", "devices_per_node"),
)
"""Values that are not 0."""


def _check(profile: DeviceProfile) -> None:
    if not profile.timings and profile.roofline is None:
        raise _WrongError("it has neither timings nor a roofline, so it says nothing of layers")
    if profile.roofline is not None and not profile.roofline.steps:
        raise _WrongError("roofline.steps is empty; give the step of a network")
    for number, timing in enumerate(profile.timings):
        if not timing.layers:
            raise _WrongError(f"timings[{number}].layers is empty")
        if sum(layer.total_s for layer in timing.layers) == 0:
            raise _WrongError(f"timings[{number}].layers take no time at all")
    for number, step in enumerate(profile.roofline.steps if profile.roofline else ()):
        name = f"roofline.steps[{number}].network"
        if is_import_path(step.network):  # a file runs no code
            raise _WrongError(f"{name} must be a network of rayff, not {step.network!r}")
        try:
            architecture(step.network, num_classes=10, image_channels=3)
        except UserError as error:
            raise _WrongError(f"{name}: {error}") from error


def _value(kind: Any, value: Any, where: str) -> Any:
    """Return a value of JSON as a type that has dataclasses, tuples, numbers and text."""
    name = where or "it"
    if dataclasses.is_dataclass(kind):
        return _instance(kind, value, where)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        rest = next(arg for arg in args if arg is not type(None))
        return None if value is None else _value(rest, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise _WrongError(f"{name} must be a list")
        return tuple(_value(args[0], each, f"{where}[{i}]") for i, each in enumerate(value))
    if origin is Literal:
        if value not in args or type(value) is not str:
            raise _WrongError(f"{name} must be {' or '.join(args)}, not {value!r}")
        return value
    if kind is str:
        if not is_plain(value) or not value:
            raise _WrongError(f"{name} must be text, not {value!r}")
        return value
    return _number(kind, value, where)


def _number(kind: Any, value: Any, where: str) -> int | float:
    above = where.rpartition(".")[2] in _POSITIVE
    whole = type(value) is int
    number = whole or (kind is float and type(value) is float and math.isfinite(value))
    possible = number and (_LEAST <= value <= _MOST or (value == 0 and not above))
    if not possible:
        what = "a whole number" if kind is int else "a number"
        least = "above 0" if above else "of 0 or more"  # and not out of all proportion
        raise _WrongError(f"{where} must be {what} {least}, not {value!r}")
    return kind(value)  # type: ignore[no-any-return]


def _instance(kind: Any, value: Any, where: str) -> Any:
    name = where or "it"
    if not isinstance(value, Mapping):
        raise _WrongError(f"{name} must be an object with {', '.join(get_type_hints(kind))}")
    hints = get_type_hints(kind)
    inside = f"{where}." if where else ""
    for key in hints:
        if key not in value:
            raise _WrongError(f"{inside}{key} is missing")
    for key in value:
        if key not in hints:
            raise _WrongError(f"{inside}{key} is unknown; known are {', '.join(hints)}")
    return kind(**{key: _value(hint, value[key], f"{inside}{key}") for key, hint in hints.items()})
