"""Simulation of a pipeline: fill, steady state and drain.

A stage works on a chunk when it has finished the one before and the chunk has arrived. A link
carries one chunk at a time, in parallel with the stages. A chunk enters the first stage when
fewer than a window of them are between there and the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from rayff.partition.boundaries import Costs

Span = tuple[float, float]
"""Begin and end in seconds."""


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Speed of a simulated pipeline."""

    total_s: float
    """From the first chunk's entrance to the last one's exit."""
    images_per_s: float
    stage_busy: tuple[float, ...]
    """Share of the total that each stage works."""


def spans(
    stage_s: Sequence[float],
    num_chunks: int,
    *,
    link_s: Sequence[float] = (),
    window: int | None = None,
) -> list[list[Span]]:
    """Return when each stage works on each chunk: a list a stage, of a span a chunk.

    Args:
        stage_s: seconds that each stage works on a chunk.
        num_chunks: how many chunks go through.
        link_s: seconds on the way from each stage to the next; none if empty.
        window: chunks under way at most; any number if None.
    """
    links = link_s or [0.0] * (len(stage_s) - 1)
    under_way = num_chunks if window is None else window
    stages: list[list[Span]] = [[] for _ in stage_s]
    stage_free_s, link_free_s = [0.0] * len(stage_s), [0.0] * len(links)
    for chunk in range(num_chunks):
        arrived_s = stages[-1][chunk - under_way][1] if chunk >= under_way else 0.0
        for stage, seconds in enumerate(stage_s):
            if stage > 0:
                arrived_s = max(arrived_s, link_free_s[stage - 1]) + links[stage - 1]
                link_free_s[stage - 1] = arrived_s
            begin_s = max(arrived_s, stage_free_s[stage])
            arrived_s = stage_free_s[stage] = begin_s + seconds
            stages[stage].append((begin_s, arrived_s))
    return stages


def simulate(
    costs: Costs,
    cuts: Sequence[int],
    replicas: Sequence[int] = (),
    *,
    batch_size: int,
    num_chunks: int,
    chunk: int = 1,
    window: int | None = None,
    overlap: bool = False,
) -> Simulated:
    """Simulate a training.

    Args:
        costs: of a batch.
        cuts: where the chain is cut.
        replicas: of each stage; one if not said.
        batch_size: images of a batch.
        num_chunks: how many chunks are trained on.
        chunk: batches of a chunk.
        window: chunks under way at most; any number if None.
        overlap: transfers run in parallel with the stages, and do not add to their time.
    """
    counts = replicas or [1] * (len(cuts) + 1)
    working, link_s = costs, [0.0] * len(cuts)
    if overlap:  # between R and S replicas the fewer ends carry the larger pieces
        ends = zip(cuts, counts, counts[1:], strict=False)
        link_s = [chunk * costs.boundary_s[cut] / min(pair) for cut, *pair in ends]
        working = dataclasses.replace(costs, boundary_s=[0.0] * len(costs.boundary_s))
    stage_s = [chunk * seconds for seconds in working.stages_s(cuts, counts)]
    stages = spans(stage_s, num_chunks, link_s=link_s, window=window)
    total_s = stages[-1][-1][1]
    return Simulated(
        total_s=total_s,
        images_per_s=num_chunks * chunk * batch_size / total_s,
        stage_busy=tuple(num_chunks * seconds / total_s for seconds in stage_s),
    )
