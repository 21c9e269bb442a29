"""Costs on a cluster of many devices: links in nodes and between them, and the driver's calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rayff.partition.boundaries import Costs
from rayff.partition.layer_costs import AllReduceTime


@dataclass(frozen=True, kw_only=True)
class Link:
    """The way from one device to another; it carries data while the devices compute."""

    bytes_per_s: float
    """In each direction, for each device."""
    latency_s: float
    """Of a message, and of each round of an all-reduce."""

    @property
    def all_reduce(self) -> AllReduceTime:
        """What an all-reduce over it takes at best."""
        return AllReduceTime(call_s=self.latency_s, byte_s=1 / self.bytes_per_s)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Links of a cluster, and what Ray adds."""

    devices_per_node: int
    node: Link
    """Between two devices of a node."""
    network: Link
    """Between devices of different nodes."""
    node_all_reduce: AllReduceTime | None = None
    """Of gradients in a node, where it was measured."""
    message_s: float = 0.0
    """Seconds of an actor for each call, whatever it does."""
    call_s: float = 0.0
    """Seconds of the driver for each call of an actor."""

    def all_reduce(self, replicas: int) -> AllReduceTime:
        """Return what an all-reduce takes among replicas, which share a node where one holds them.

        Between nodes it is no faster than in one.
        """
        inside = self.node_all_reduce or self.node.all_reduce
        if replicas <= self.devices_per_node:
            return inside
        outside = self.network.all_reduce
        return AllReduceTime(
            call_s=max(inside.call_s, outside.call_s), byte_s=max(inside.byte_s, outside.byte_s)
        )


@dataclass(frozen=True, kw_only=True)
class ClusterCosts(Costs):
    """Costs of a batch on a cluster; a replica gets whole images.

    The link of a stage works beside it: the slower of both decides. Each device carries its part
    of what crosses a boundary, so between R and S replicas the fewer ends decide.

    Attributes:
        images: of a batch.
        boundary_bytes: bytes of a batch over each possible cut, as `boundary_s`.
        weight_bytes: bytes of each layer's gradient.
        link: that boundaries use.
        cluster: where the replicas are.
        chunk: batches of a message.
    """

    images: int
    boundary_bytes: Sequence[float]
    weight_bytes: Sequence[float]
    link: Link
    cluster: Cluster
    chunk: int = 1

    def share(self, replicas: int) -> float:
        """Return the part of a batch that the replica with the most images gets."""
        return math.ceil(self.images / replicas) / self.images

    def sums_s(self, start: int, end: int, replicas: int) -> float:
        """Return the seconds of the all-reduces: 2(r - 1)/r of the bytes in log2 r rounds."""
        if replicas == 1:
            return 0.0
        time, rounds = self.cluster.all_reduce(replicas), math.ceil(math.log2(replicas))
        sent = 2 * (replicas - 1) / replicas * sum(self.weight_bytes[start:end])
        return sent * time.byte_s + rounds * time.call_s * (end - start)

    def link_s(self, cut: int, replicas: int) -> float:
        """Return the seconds in which so many devices send or receive a batch's share each."""
        if not 0 < cut < len(self.layer_s):
            return 0.0
        return self.boundary_bytes[cut] * self.share(replicas) / self.link.bytes_per_s

    def work_s(self, start: int, end: int, replicas: int = 1) -> float:
        """Return the seconds that the devices of a stage work, its links aside."""
        return super().stage_s(start, end, replicas) + self.cluster.message_s / self.chunk

    def stage_s(self, start: int, end: int, replicas: int = 1) -> float:
        """Return the seconds of a stage, or of one of its links where that is slower."""
        return max(
            self.work_s(start, end, replicas),
            self.link_s(start, replicas),
            self.link_s(end, replicas),
        )

    def driver_s(self, num_actors: int) -> float:
        """Return the driver's seconds of a batch: it calls every actor once a chunk."""
        return num_actors * self.cluster.call_s / self.chunk
