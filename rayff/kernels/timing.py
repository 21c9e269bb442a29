"""Clocks for work on a device."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import torch

from rayff.kernels.cuda_graph import cuda_graph

_REPLAYS = 10


def clock(device: torch.device) -> float:
    """Return the seconds of a clock, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def once_s(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that some work takes, run once."""
    start = clock(device)
    work()
    return clock(device) - start


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that some work takes in training.

    On a GPU it is recorded and replayed: launched one by one, small kernels would take as long as
    their launches.
    """
    if device.type != "cuda":
        return once_s(work, device)

    def nothing_returned() -> None:
        work()

    with warnings.catch_warnings():  # of recordings without a kernel, such as of a mere view
        warnings.simplefilter("ignore")
        replay = cuda_graph(nothing_returned)
    replay()
    start = clock(device)
    for _ in range(_REPLAYS):
        replay()
    return (clock(device) - start) / _REPLAYS
