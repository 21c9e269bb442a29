"""CUDA graphs, which record work once and replay it, and side streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch

_WARM_UPS = 3
"""Runs before the recording, in which libraries choose algorithms and compile."""


class Record(Protocol):
    """Turns work into a function that repeats it on the same memory."""

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return the replay of `work`."""
        ...


def rerun(work: Callable[[], None]) -> Callable[[], None]:
    """Record nothing: the replay is the work itself. For devices without CUDA graphs."""
    work()
    return work


def cuda_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Record the work as a CUDA graph."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


class SideStream:
    """Runs work on a CUDA stream of its own; on other devices at once.

    A layer's weight gradient and its optimizer step are needed by no later layer, so the forward
    pass of the next layers fills what they leave idle of the GPU. At most `_LAG` of them are
    unfinished at a time, since until then their memory is in use.
    """

    _LAG = 2

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.unfinished: deque[tuple[torch.cuda.Event, Callable[[], None]]] = deque()

    def run(self, work: Callable[[], None]) -> None:
        """Enqueue the work behind everything enqueued so far; keep what it refers to alive."""
        if self.stream is None:
            work()
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            work()
            done = self.stream.record_event()
        self.unfinished.append((done, work))
        self.wait(self._LAG)

    def wait(self, lag: int = 0) -> None:
        """Let the current stream wait until no more than `lag` works are unfinished."""
        while len(self.unfinished) > lag:
            done, _ = self.unfinished.popleft()
            torch.cuda.current_stream().wait_event(done)
