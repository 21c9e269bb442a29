"""Where to cut a chain so that the slowest stage is as fast as can be: a pure function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a batch costs.

    Attributes:
        layer_s: seconds that each layer computes, L of them.
        crossing_s: seconds that a stage spends on each possible cut, to send or to receive;
            entry i is the cut before layer i, entry 0 is the way in and costs nothing here.
    """

    layer_s: Sequence[float]
    crossing_s: Sequence[float]

    def stage_s(self, start: int, end: int) -> float:
        """Return the seconds of a stage of layers start..end-1, its transfers included."""
        receive = self.crossing_s[start] if start > 0 else 0.0
        send = self.crossing_s[end] if end < len(self.layer_s) else 0.0
        return receive + sum(self.layer_s[start:end]) + send

    def stages_s(self, cuts: Sequence[int]) -> list[float]:
        """Return the seconds of every stage that `cuts` make."""
        bounds = [0, *cuts, len(self.layer_s)]
        return [self.stage_s(*pair) for pair in zip(bounds, bounds[1:], strict=False)]

    def speedup(self, cuts: Sequence[int]) -> float:
        """Return the predicted speed-up over one stage: all layers over the slowest stage."""
        return sum(self.layer_s) / max(self.stages_s(cuts))


def balanced_cuts(costs: Costs, num_stages: int) -> tuple[int, ...]:
    """Return the cuts whose slowest stage is fastest; on a tie the least transfer.

    Dynamic programming over (stages used, layers covered), O(stages x L^2), in two rounds: how
    fast the slowest stage can be, and the least transfer of cuts that keep to it. One round
    would drop a slower beginning that sends less, though a later stage is slower than either.

    Raises:
        ValueError: more stages than layers.
    """
    num_layers = len(costs.layer_s)
    if not 1 <= num_stages <= num_layers:
        raise ValueError(f"{num_layers} layers make 1 to {num_layers} stages, not {num_stages}")
    # slowest[end]: seconds of the slowest stage of layers 0..end-1 in as many stages as so far
    slowest = {end: costs.stage_s(0, end) for end in range(1, num_layers + 1)}
    for used in range(2, num_stages + 1):
        slowest = {
            end: min(max(slowest[cut], costs.stage_s(cut, end)) for cut in range(used - 1, end))
            for end in range(used, num_layers + 1)
        }
    limit = slowest[num_layers]

    def transfer(cut: int, end: int) -> float:
        if costs.stage_s(cut, end) > limit:
            return math.inf
        return costs.crossing_s[cut] if cut > 0 else 0.0

    # best[end]: (transfer, cuts) of layers 0..end-1, infinite where a stage is over the limit
    best: dict[int, tuple[float, tuple[int, ...]]] = {
        end: (transfer(0, end), ()) for end in range(1, num_layers + 1)
    }
    for used in range(2, num_stages + 1):
        best = {
            end: min(
                (best[cut][0] + transfer(cut, end), (*best[cut][1], cut))
                for cut in range(used - 1, end)
            )
            for end in range(used, num_layers + 1)
        }
    return best[num_layers][1]
