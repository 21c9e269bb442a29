"""Seconds of a network's layers on a device, from what was measured there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rayff.config.errors import UserError
from rayff.config.train_config import Precision
from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture
from rayff.partition.device_profile import (
    ELEMENT_BYTES,
    DeviceProfile,
    Roofline,
    Step,
    Timing,
    feature_bytes,
)
from rayff.partition.layer_costs import LayerTime
from rayff.partition.roofline import least_s, optimizer_bytes


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
