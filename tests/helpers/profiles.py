"""Profiles of a device that is not there."""

from rayff.models.zoo import architecture
from rayff.partition.device_profile import (
    DeviceProfile,
    LinkRate,
    RayTimes,
    TimedLayer,
    Timing,
    feature_bytes,
)

TINYCNN = architecture("tinycnn", num_classes=10, image_channels=3)


def timing(
    batch_size: int, seconds: list[float], *, neighbours: int = 0, optimizer_s: float = 0.0
) -> Timing:
    """Return times of tinycnn, whose forward pass takes all but the optimizer's."""
    sizes = feature_bytes(TINYCNN, "fp32")
    layers = [
        TimedLayer(
            forward_s=forward_s,
            pointwise_s=0.0,
            gradient_s=0.0,
            optimizer_s=optimizer_s,
            weights=layer.num_weights,
            feature_bytes=size,
        )
        for forward_s, layer, size in zip(seconds, TINYCNN.layers, sizes, strict=True)
    ]
    return Timing(
        network="tinycnn",
        loss="goodness",
        batch_size=batch_size,
        neighbours=neighbours,
        layers=tuple(layers),
    )


def device_profile(*timings: Timing, **options: object) -> DeviceProfile:
    """Return a profile of four devices a node; of a batch of 8 unless other times are given."""
    link = LinkRate(bytes_per_s=1e12, latency_s=0.0, source="assumed")
    values = {
        "format": 1,
        "hardware": "some CPU",
        "date": "2026-11-28",
        "torch": "2.14",
        "precision": "fp32",
        "threads": 1,
        "command": "rayff plan",
        "devices_per_node": 4,
        "node": link,
        "network": link,
        "ray": RayTimes(copy_bytes_per_s=None, message_s=0.0, call_s=0.0, source="assumed"),
        "node_all_reduce": None,
        "roofline": None,
        "timings": timings or (timing(8, [1e-3, 2e-3, 3e-3, 4e-3]),),
    }
    return DeviceProfile(**{**values, **options})  # type: ignore[arg-type]
