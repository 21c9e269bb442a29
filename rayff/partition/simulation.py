"""Simulation of a pipeline: fill, steady state and drain.

A stage works on a chunk when it has finished the one before and the chunk has arrived. A link
carries one chunk at a time, in parallel with the stages. A chunk enters the first stage when
fewer than a window of them are between there and the end.
"""

from __future__ import annotations

from collections.abc import Sequence

Span = tuple[float, float]
"""Begin and end in seconds."""


def spans(
    stage_s: Sequence[float],
    num_chunks: int,
    *,
    link_s: Sequence[float] = (),
    latency_s: float = 0.0,
    window: int | None = None,
) -> list[list[Span]]:
    """Return when each stage works on each chunk: a list a stage, of a span a chunk.

    Args:
        stage_s: seconds that each stage works on a chunk.
        num_chunks: how many chunks go through.
        link_s: seconds on the way from each stage to the next; none if empty.
        latency_s: further seconds on each way, in which the link may carry the next chunk.
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
                arrived_s += latency_s
            begin_s = max(arrived_s, stage_free_s[stage])
            arrived_s = stage_free_s[stage] = begin_s + seconds
            stages[stage].append((begin_s, arrived_s))
    return stages
