"""Plans for any number of devices, simulated from a device's profile: pure functions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rayff.config.errors import UserError
from rayff.models.architecture import Architecture
from rayff.partition.boundaries import Division, balanced_boundaries, balanced_division
from rayff.partition.cluster import Cluster, ClusterCosts, Link
from rayff.partition.device_profile import DeviceProfile, feature_bytes
from rayff.partition.layer_costs import AllReduceTime
from rayff.partition.layer_model import NetworkModel, network_model
from rayff.partition.plan import chunk_of
from rayff.partition.simulation import spans

MOST_PLAYED = 1000
"""Chunks that are simulated one by one; others follow as in the steady state."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is trained, on which kind of cluster."""

    profile: DeviceProfile
    architecture: Architecture
    cluster: Cluster
    batch_size: int
    loss: str = "goodness"
    least_images: int = 1
    """Of a batch that a replica gets."""
    images: int = 45_000
    """Of an epoch."""
    epochs: int = 150
    cuts: tuple[int, ...] | None = None
    replicas: tuple[int, ...] | None = None
    chunk: int | None = None
    window: int | None = None

    def model(self, devices: int) -> NetworkModel:
        """Return the times of the layers where so many devices work."""
        neighbours = min(devices, self.cluster.devices_per_node) - 1
        return network_model(self.profile, self.architecture, self.loss, neighbours)

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return math.ceil(self.images / self.batch_size)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A plan for a number of devices and what it achieves."""

    devices: int
    costs: ClusterCosts
    division: Division
    window: int
    batch_s: float
    """Seconds from one batch to the next."""
    bottleneck: str
    """What is never idle: a stage, a link, the driver, or the window."""
    epoch_s: float
    run_s: float
    """Of all epochs, without evaluation and failures."""

    @property
    def actors(self) -> int:
        """Devices that the plan uses."""
        return sum(self.division.replicas)

    @property
    def images_per_s(self) -> float:
        """Trained in the steady state."""
        return self.costs.images / self.batch_s


def cluster_costs(scenario: Scenario, devices: int) -> ClusterCosts:
    """Return the costs of a batch where so many devices work at once."""
    network, images = scenario.architecture, scenario.batch_size
    cluster, model = scenario.cluster, scenario.model(devices)
    onward = [images * size for size in feature_bytes(network, scenario.profile.precision)]
    boundary_bytes = [0, *onward[:-1]]
    rate = scenario.profile.ray.copy_bytes_per_s
    layer_s = [layer.image_s * images for layer in model.layers]
    step_s = [layer.fixed_s for layer in model.layers]
    least_batch_s = sum(layer_s) / devices
    return ClusterCosts(
        layer_s=layer_s,
        boundary_s=[size / rate if rate else 0.0 for size in boundary_bytes],
        step_s=step_s,
        images=images,
        boundary_bytes=boundary_bytes,
        weight_bytes=[4 * layer.num_weights for layer in network.layers],
        link=cluster.node if devices <= cluster.devices_per_node else cluster.network,
        cluster=cluster,
        chunk=scenario.chunk or chunk_of(max(boundary_bytes), least_batch_s),
    )


def measured_cluster(profile: DeviceProfile) -> Cluster:
    """Return a cluster of a profile's devices, with the links that it names."""
    sums, node, network = profile.node_all_reduce, profile.node, profile.network
    return Cluster(
        devices_per_node=profile.devices_per_node,
        node=Link(bytes_per_s=node.bytes_per_s, latency_s=node.latency_s),
        network=Link(bytes_per_s=network.bytes_per_s, latency_s=network.latency_s),
        node_all_reduce=(
            AllReduceTime(call_s=sums.call_s, byte_s=1 / sums.bytes_per_s) if sums else None
        ),
        message_s=profile.ray.message_s,
        call_s=profile.ray.call_s,
    )


def predict(scenario: Scenario, devices: int) -> Prediction:
    """Return the fastest plan for so many devices or fewer, and on a tie the smallest.

    All devices are on one node where it holds them; of more, boundaries are taken to be between
    nodes. One device and a whole node are tried as well, whose links or layers may be faster.

    Raises:
        UserError: `cuts` and `replicas` do not make a plan for so many devices.
    """
    node = scenario.cluster.devices_per_node
    levels = scenario.profile.levels(scenario.architecture.name, scenario.loss)
    counts = sorted({each for each in (*levels, node, devices) if 1 <= each <= devices})
    if scenario.cuts is not None or scenario.replicas is not None:
        counts = [devices]
    tried = [_play(scenario, count, devices) for count in counts]
    return min(tried, key=lambda each: (each.batch_s, each.actors))


def _play(scenario: Scenario, count: int, devices: int) -> Prediction:
    costs = cluster_costs(scenario, count)
    division = _division(scenario, costs, count)
    cuts, replicas = division.cuts, division.replicas
    bounds = [0, *cuts, len(costs.layer_s)]
    work = [costs.work_s(*each) for each in zip(bounds, bounds[1:], replicas, strict=False)]
    links = [
        max(costs.link_s(cut, sender), costs.link_s(cut, receiver))
        for cut, sender, receiver in zip(cuts, replicas, replicas[1:], strict=False)
    ]
    chunk, latency_s = costs.chunk, costs.link.latency_s
    busy = [chunk * s for s in (costs.driver_s(sum(replicas)), *work)]
    on_the_way = [latency_s, *(chunk * s + latency_s for s in links)]
    named = {"the driver's calls": busy[0]}
    named |= {f"stage {i}": s for i, s in enumerate(busy[1:])}
    named |= {f"the link after stage {i}": chunk * s for i, s in enumerate(links)}
    bottleneck = max(named, key=lambda name: named[name])
    whole_s, gap_s = sum(busy) + sum(on_the_way), named[bottleneck]
    window = scenario.window or max(len(replicas) + 2, math.ceil(whole_s / gap_s))
    if whole_s / window > gap_s:
        bottleneck, gap_s = "the window", whole_s / window
    chunks, batch_s = math.ceil(scenario.batches / chunk), gap_s / chunk
    played = min(chunks, MOST_PLAYED)
    ways = [0.0, *(chunk * s for s in links)]
    ends = spans(busy, played, link_s=ways, latency_s=latency_s, window=window)
    return Prediction(
        devices=devices,
        costs=costs,
        division=division,
        window=window,
        batch_s=batch_s,
        bottleneck=bottleneck,
        epoch_s=scenario.batches * batch_s,
        run_s=ends[-1][-1][1] + (scenario.epochs * chunks - played) * gap_s,
    )


def _division(scenario: Scenario, costs: ClusterCosts, count: int) -> Division:
    if scenario.replicas is None and scenario.cuts is None:
        most = max(1, scenario.batch_size // scenario.least_images)
        return balanced_division(costs, count, most, costs.driver_s(1))
    replicas = scenario.replicas or (1,) * (len(scenario.cuts or ()) + 1)
    if sum(replicas) > count:
        raise UserError(
            f"--replicas and --cuts need {sum(replicas)} devices, and --devices has {count}"
        )
    if max(replicas) > scenario.batch_size:
        raise UserError(f"{max(replicas)} replicas cannot share {scenario.batch_size} images")
    cuts = balanced_boundaries(costs, replicas) if scenario.cuts is None else scenario.cuts
    return Division(cuts=cuts, replicas=replicas)
