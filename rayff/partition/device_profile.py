"""Profile files: what was measured on a device, as JSON that plans for other clusters start from.

A file holds what was measured, and says of the rest that it is assumed. Layers are timed, at one
or several batch sizes and with and without neighbours on the same node; where only the step of
a whole network was timed, the layers are modelled when they are asked for (`Roofline`).
"""

from __future__ import annotations

import dataclasses
import json
import reprlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from rayff.config.errors import UserError
from rayff.config.registry import is_import_path
from rayff.config.text import is_path, is_plain
from rayff.config.train_config import Precision
from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture
from rayff.partition.layer_costs import LayerTime

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
LEAST, MOST = 1e-9, 1e18
"""Of times and rates: nothing real is outside, and no quotient is infinite."""
ELEMENT_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2}
FOLDER = Path(__file__).with_name("profiles")
"""The profiles that come with rayff."""


def _plain(text: str) -> str:
    if not is_plain(text):
        raise ValueError("it has characters that cannot be printed")
    return text


def _of_rayff(network: str) -> str:
    """Return the name of a network that is known without running anybody's code."""
    if is_import_path(network):
        raise ValueError("a file names networks of rayff alone")
    try:
        architecture(network, num_classes=10, image_channels=3)
    except UserError as error:
        raise ValueError(str(error)) from error
    return network


def _take_time(layers: tuple[TimedLayer, ...]) -> tuple[TimedLayer, ...]:
    if sum(layer.total_s for layer in layers) < LEAST:
        raise ValueError("they take no time at all")
    return layers


Text = Annotated[str, Field(min_length=1), AfterValidator(_plain)]
Number = Annotated[int, Field(ge=0, le=int(MOST))]
Count = Annotated[int, Field(ge=1, le=int(MOST))]
Seconds = Annotated[float, Field(ge=0, le=MOST)]
Rate = Annotated[float, Field(ge=LEAST, le=MOST)]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class TimedLayer(LayerTime):
    """A layer's time, and its size, by which another network is noticed."""

    forward_s: Seconds
    pointwise_s: Seconds
    gradient_s: Seconds
    optimizer_s: Seconds
    weights: Number
    feature_bytes: Number
    """Of an image, over a boundary behind it."""


@dataclass(config=STRICT, frozen=True, kw_only=True)
class Timing:
    """What the layers of a network took, each timed alone."""

    network: Text
    loss: Text
    batch_size: Count
    neighbours: Number
    """Other devices of the node that timed at the same moment."""
    layers: Annotated[tuple[TimedLayer, ...], AfterValidator(_take_time)]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class Step:
    """What a step of a whole network took."""

    network: Annotated[Text, AfterValidator(_of_rayff)]
    batch_size: Count
    step_s: Rate
    source: Text


@dataclass(config=STRICT, frozen=True, kw_only=True)
class Roofline:
    """Rates of a device, and whole steps; layers are modelled from them.

    Of each layer the longer of its operations and bytes at these rates, times the ratio of the
    measured step to the sum of all layers: the network's own, or that of the network whose step
    has the nearest number of operations.
    """

    operations_per_s: Rate
    bytes_per_s: Rate
    steps: Annotated[tuple[Step, ...], Field(min_length=1)]


@dataclass(config=STRICT, frozen=True, kw_only=True)
class LinkRate:
    """Speed of a link, in each direction."""

    bytes_per_s: Rate
    latency_s: Seconds
    source: Text


@dataclass(config=STRICT, frozen=True, kw_only=True)
class SumRate:
    """Speed of all-reduces between devices of a node."""

    bytes_per_s: Rate
    call_s: Seconds
    source: Text


@dataclass(config=STRICT, frozen=True, kw_only=True)
class RayTimes:
    """What Ray takes."""

    copy_bytes_per_s: Rate | None
    """Into the object store and out of it; None where a direct transport makes no copy."""
    message_s: Seconds
    """Of an actor for each call."""
    call_s: Seconds
    """Of the driver for each call of an actor."""
    source: Text


@dataclass(config=STRICT, frozen=True, kw_only=True)
class DeviceProfile:
    """What was measured on a device."""

    format: Literal[1]
    hardware: Text
    date: Text
    torch: Text
    precision: Precision
    threads: Count
    command: Text
    devices_per_node: Count
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


def feature_bytes(network: Architecture, precision: Precision) -> list[int]:
    """Return the bytes of an image over a boundary behind each layer; 0 behind the last."""
    cuts = range(1, len(network))
    onward = [network.boundary_elements(cut) * ELEMENT_BYTES[precision] for cut in cuts]
    return [*onward, 0]


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
        profile = TypeAdapter(DeviceProfile).validate_json(name.read_bytes())
    except OSError as error:
        raise UserError(f"profile {name} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise UserError(
            f"profile {name}: {_first_mistake(error)}; write it with `rayff plan --save-profile "
            "FILE`"
        ) from None
    if not profile.timings and profile.roofline is None:
        raise UserError(
            f"profile {name} has neither timings nor a roofline, so it says nothing of layers"
        )
    return profile


def _first_mistake(error: ValidationError) -> str:
    """Return a clause about the first mistake in a file, or about its format."""
    mistakes = error.errors(include_url=False)
    first = next((each for each in mistakes if each["loc"] == ("format",)), mistakes[0])
    where = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] not in ("missing", "json_invalid"):
        message += f", not {reprlib.repr(first['input'])}"
    return f"{where.removeprefix('.')}: {message}" if where else message


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
