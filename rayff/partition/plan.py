"""The plan of a pipeline: where it is cut, and what each stage gets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from rayff.config.recipe import Method
from rayff.config.text import plural
from rayff.config.train_config import TrainConfig
from rayff.models.architecture import Architecture
from rayff.partition.boundaries import Costs, balanced_boundaries, balanced_division

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StageResources:
    """What one actor takes of the cluster: a stage, or each of its replicas."""

    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """Torch threads of the actor: its whole CPUs, at least one."""
        return max(1, int(self.cpus))

    def __str__(self) -> str:
        cpus = f"{self.cpus:g} CPU{'' if self.cpus == 1 else 's'}"
        return f"{self.gpus:g} GPU, {cpus}" if self.gpus else cpus


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cuts and replicas, with the resources of each actor and what was measured."""

    architecture: Architecture
    cuts: tuple[int, ...]
    replicas: tuple[int, ...]
    """Actors of each stage."""
    resources: StageResources
    costs: Costs
    """Of one training batch, as measured."""
    method: Method = "ff"
    """By backpropagation there is one stage, whose replicas are the workers."""
    nodes: tuple[str, ...] = ()
    """Where each actor is, once they have started and where there are several nodes."""

    @property
    def num_stages(self) -> int:
        """Number of stages."""
        return len(self.cuts) + 1

    @property
    def num_actors(self) -> int:
        """Number of actors of all stages."""
        return sum(self.replicas)

    @property
    def layer_ranges(self) -> list[str]:
        """The layers of each stage, such as "0-4"."""
        slices = self.architecture.stages(self.cuts)
        pairs = [(part[0].index, part[len(part) - 1].index) for part in slices]
        return [str(a) if a == b else f"{a}-{b}" for a, b in pairs]

    @property
    def stage_names(self) -> list[str]:
        """The layers of each stage, such as "layers 0-4", its replicas, such as "x2", and its
        nodes, such as "on gpu-1"."""
        if self.method != "ff":
            return [plural(self.num_actors, "worker")]
        where = self.by_stage(self.nodes) if self.nodes else [[] for _ in self.replicas]
        return [
            ("layers " if "-" in layers else "layer ")
            + layers
            + (f" x{count}" if count > 1 else "")
            + (f" on {', '.join(dict.fromkeys(nodes))}" if nodes else "")
            for layers, count, nodes in zip(self.layer_ranges, self.replicas, where, strict=True)
        ]

    @property
    def stages_s(self) -> list[float]:
        """Seconds that each stage takes for a batch."""
        return self.costs.stages_s(self.cuts, self.replicas)

    @property
    def speedup(self) -> float:
        """Predicted speed-up over one actor."""
        return self.costs.speedup(self.cuts, self.replicas)

    def by_stage(self, actors: Sequence[T]) -> list[list[T]]:
        """Return the actors of each stage, in order, without those that the plan does not need."""
        rest = iter(actors)
        return [[next(rest) for _ in range(count)] for count in self.replicas]

    def __str__(self) -> str:
        if self.method != "ff":
            workers = plural(self.num_actors, "worker")
            supervision = " with deep supervision" if self.method == "bp-deepsup" else ""
            return f"backpropagation{supervision} by {workers}, {self.resources} each"
        stages = f"{plural(self.num_stages, 'stage')} ({' | '.join(self.stage_names)})"
        return f"{stages}, {self.resources} each"


def make_plan(
    config: TrainConfig,
    network: Architecture,
    resources: StageResources,
    costs: Costs,
    num_actors: int,
    batch_size: int,
) -> Plan:
    """Return the boundaries and replicas that the config asks for, or else the best for the costs.

    Args:
        config: the user's.
        network: all layers.
        resources: of each actor.
        costs: of a training batch.
        num_actors: of all stages; with `--replicas auto` no more than these.
        batch_size: images of a batch.
    """
    cuts: tuple[int, ...]
    replicas: tuple[int, ...]
    if config.method != "ff":
        cuts, replicas = (), (num_actors,)
    elif config.replicas == "auto":
        best = balanced_division(costs, num_actors, batch_size)
        cuts, replicas = best.cuts, best.replicas
    else:
        replicas = config.replica_counts or (1,) * num_actors
        cuts = balanced_boundaries(costs, replicas) if config.cuts is None else config.cuts
    return Plan(
        architecture=network,
        cuts=cuts,
        replicas=replicas,
        resources=resources,
        costs=costs,
        method=config.method,
    )


REBALANCE_GAIN = 0.1
"""Share of the slowest stage's time that new cuts must save, to be worth it and not noise."""


def rebalanced(plan: Plan, stage_s: Sequence[float]) -> Plan:
    """Return the plan with the cuts that suit the times that were measured, or as it is.

    A stage that takes longer than planned is on a slower machine: with any other layers it would
    take longer by the same factor.

    Args:
        plan: in use.
        stage_s: seconds of each stage for a batch, as measured.
    """
    slowness = [found / max(s, 1e-9) for found, s in zip(stage_s, plan.stages_s, strict=True)]
    cuts = balanced_boundaries(plan.costs, plan.replicas, slowness)
    then = plan.costs.stages_s(cuts, plan.replicas)
    slowest = max(s * times for s, times in zip(then, slowness, strict=True))
    if slowest > (1 - REBALANCE_GAIN) * max(stage_s):
        return plan
    return dataclasses.replace(plan, cuts=cuts)


CHUNK_S = 0.3
"""Seconds of a default chunk: long against a message's cost, short against a person's patience."""
CHUNK_BYTES = 64 * 2**20
"""Bytes of a default chunk at most, so that a window of them is small against any store."""


def default_chunk(plan: Plan, *, batch_size: int, bytes_per_element: int) -> int:
    """Return how many batches a message takes by default."""
    elements = max((plan.architecture.boundary_elements(cut) for cut in plan.cuts), default=0)
    return chunk_of(elements * batch_size * bytes_per_element, max(plan.stages_s))


def chunk_of(batch_bytes: int, batch_s: float) -> int:
    """Return how many batches of so many bytes and seconds a message takes."""
    by_bytes = CHUNK_BYTES // max(1, batch_bytes)
    by_time = CHUNK_S / max(1e-6, batch_s)
    return max(1, min(64, int(by_time), by_bytes))


def stage_memory_bytes(part: Architecture, images: int, bytes_per_element: int) -> int:
    """Return about what a stage needs beside its process: its layers and one layer's batch.

    A layer has its weights, gradient and two moments of the optimizer in float32; of a batch its
    input, its product and what it hands on.
    """
    batch = max(
        math.prod(layer.in_shape) + math.prod(layer.out_shape) + math.prod(layer.feature_shape)
        for layer in part.layers
    )
    return 4 * 4 * part.num_weights + images * batch * bytes_per_element
