"""Boundaries of stages that make the slowest stage as fast as possible: pure functions."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of a batch.

    A stage of r replicas divides what grows with the images by r. Each of its replicas steps all
    weights of the stage, and sends and receives 2(r - 1)/r of their gradients to add them up.

    Attributes:
        layer_s: seconds that each layer computes on the images, L of them.
        boundary_s: seconds that a stage spends on each possible cut, to send or to receive;
            entry i is the cut before layer i, entry 0 is the way in and costs nothing here.
        step_s: seconds of each layer's optimizer, whatever the images; none of them if empty.
        all_reduce_s: seconds in which each layer's gradient is sent once; none of them if empty.
    """

    layer_s: Sequence[float]
    boundary_s: Sequence[float]
    step_s: Sequence[float] = ()
    all_reduce_s: Sequence[float] = ()

    def stage_s(self, start: int, end: int, replicas: int = 1) -> float:
        """Return the seconds of a stage of layers start..end-1, its transfers included."""
        receive = self.boundary_s[start] if start > 0 else 0.0
        send = self.boundary_s[end] if end < len(self.layer_s) else 0.0
        images_s = receive + sum(self.layer_s[start:end]) + send
        sums_s = self.sums_s(start, end, replicas)
        return images_s * self.share(replicas) + sum(self.step_s[start:end]) + sums_s

    def share(self, replicas: int) -> float:
        """Return the largest part of a batch that one of so many replicas gets."""
        return 1 / replicas

    def sums_s(self, start: int, end: int, replicas: int) -> float:
        """Return the seconds in which replicas of layers start..end-1 sum their gradients."""
        return 2 * (replicas - 1) * sum(self.all_reduce_s[start:end]) / replicas

    def stages_s(self, cuts: Sequence[int], replicas: Sequence[int] = ()) -> list[float]:
        """Return the seconds of every stage that `cuts` make, of one replica if not said."""
        bounds = [0, *cuts, len(self.layer_s)]
        counts = replicas or [1] * (len(cuts) + 1)
        return [self.stage_s(*each) for each in zip(bounds, bounds[1:], counts, strict=False)]

    def speedup(self, cuts: Sequence[int], replicas: Sequence[int] = ()) -> float:
        """Return the predicted speed-up over one actor: all layers over the slowest stage."""
        return self.stage_s(0, len(self.layer_s)) / max(self.stages_s(cuts, replicas))


def balanced_boundaries(
    costs: Costs, replicas: Sequence[int], slowness: Sequence[float] = ()
) -> tuple[int, ...]:
    """Return the cuts whose slowest stage is fastest; on a tie the least transfer.

    Dynamic programming over (stages used, layers covered), O(stages x L^2), in two rounds: how
    fast the slowest stage can be, and the least transfer of cuts that keep to it. One round
    would drop a slower beginning that sends less, though a later stage is slower than either.

    Args:
        costs: of a batch.
        replicas: of each stage, in order.
        slowness: of each stage's machine, by which the costs are multiplied; 1 if empty.

    Raises:
        ValueError: more stages than layers.
    """
    num_layers, num_stages = len(costs.layer_s), len(replicas)
    machines = list(zip(replicas, slowness or [1.0] * num_stages, strict=True))
    if not 1 <= num_stages <= num_layers:
        raise ValueError(f"{num_layers} layers make 1 to {num_layers} stages, not {num_stages}")

    def stage_s(start: int, end: int, machine: tuple[int, float]) -> float:
        count, times = machine
        return times * costs.stage_s(start, end, count)

    # slowest[end]: seconds of the slowest stage of layers 0..end-1 in as many stages as so far
    slowest = {end: stage_s(0, end, machines[0]) for end in range(1, num_layers + 1)}
    for used, machine in enumerate(machines[1:], start=1):
        slowest = {
            end: min(max(slowest[cut], stage_s(cut, end, machine)) for cut in range(used, end))
            for end in range(used + 1, num_layers + 1)
        }
    limit = slowest[num_layers]

    def transfer(cut: int, end: int, machine: tuple[int, float]) -> float:
        if stage_s(cut, end, machine) > limit:
            return math.inf
        return costs.boundary_s[cut] if cut > 0 else 0.0

    # best[end]: (transfer, cuts) of layers 0..end-1, infinite where a stage is over the limit
    best: dict[int, tuple[float, tuple[int, ...]]] = {
        end: (transfer(0, end, machines[0]), ()) for end in range(1, num_layers + 1)
    }
    for used, machine in enumerate(machines[1:], start=1):
        best = {
            end: min(
                (best[cut][0] + transfer(cut, end, machine), (*best[cut][1], cut))
                for cut in range(used, end)
            )
            for end in range(used + 1, num_layers + 1)
        }
    return best[num_layers][1]


@dataclass(frozen=True, kw_only=True)
class Division:
    """Cuts, and the replicas of each stage between them."""

    cuts: tuple[int, ...]
    replicas: tuple[int, ...]


def balanced_division(
    costs: Costs, num_actors: int, most_replicas: int, driver_s: float = 0.0
) -> Division:
    """Return the division among `num_actors` or fewer whose slowest stage is fastest.

    On a tie the fewest actors, and then the least transfer: an actor that makes nothing faster
    is left out. For a given limit of a stage's seconds the fewest actors are soon found; the
    least limit for which they are enough is looked for among the seconds of all stages there
    could be.

    Args:
        costs: of a batch.
        num_actors: one or more.
        most_replicas: of one stage, the images of a batch at most.
        driver_s: seconds that the driver spends on each actor for a batch; all actors together
            are no faster than it.
    """
    size = len(costs.layer_s)
    counts = range(1, min(num_actors, most_replicas) + 1)
    # seconds[start, end]: of layers start..end-1 in 1, 2, ... replicas
    seconds = {
        (start, end): [costs.stage_s(start, end, count) for count in counts]
        for start in range(size)
        for end in range(start + 1, size + 1)
    }

    def fewest(limit: float) -> tuple[float, float, tuple[int, ...], tuple[int, ...]]:
        """Return actors (infinite if there is no way), transfer, starts and replicas."""
        best: list[tuple[float, float, tuple[int, ...], tuple[int, ...]]] = [(0.0, 0.0, (), ())]
        for end in range(1, size + 1):
            ways = []
            for start, (actors, transfer, starts, replicas) in enumerate(best):
                fits = (r for r, s in zip(counts, seconds[start, end], strict=True) if s <= limit)
                count = next(fits, None)
                ways.append(
                    (
                        math.inf if count is None else actors + count,
                        transfer + (costs.boundary_s[start] if start > 0 else 0.0),
                        (*starts, start),
                        (*replicas, count or 0),
                    )
                )
            best.append(min(ways))
        return best[size]

    def holds(limit: float) -> bool:
        actors = fewest(limit)[0]
        return actors <= num_actors and actors * driver_s <= limit

    of_stages = {second for stage in seconds.values() for second in stage}
    limits = sorted({*of_stages, *(actors * driver_s for actors in range(1, num_actors + 1))})
    least = bisect_left(limits, True, key=holds)
    _, _, starts, replicas = fewest(limits[least])
    return Division(cuts=starts[1:], replicas=replicas)
