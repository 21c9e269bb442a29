"""Sums of gradients among replicas that see the same memory; no number goes through a socket.

    each replica    its gradient -> its own row of a block         (signal: written)
                    all rows -> their sum, in the order of rows    (signal after a step: read)

Signals are sums of one number by torch.distributed, so a replica that dies ends them at once.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore


class SharedSum:
    """The all_reduce of one replica.

    Args:
        block: memory that all replicas see, (replicas, elements of all weights).
        rank: which row is the replica's own.
        weights: what has gradients, in the order in which their elements lie in a row.
    """

    def __init__(self, block: Tensor, rank: int, weights: Sequence[Tensor]) -> None:
        self.rank = rank
        ends = accumulate(weight.numel() for weight in weights)
        self.rows = {
            weight: block[:, end - weight.numel() : end]
            for weight, end in zip(weights, ends, strict=True)
        }
        self.total = torch.empty(max(weight.numel() for weight in weights))
        self.waiting = 0
        self.read: Callable[[], None] | None = None

    def start(self, weight: Tensor) -> Callable[[], None]:
        """Begin to sum a weight's gradients.

        The sum lies in memory that the next one uses again: step before that is waited for.
        """
        if self.read is not None:  # the rows may be written again once everybody has read them
            self.read()
            self.read = None
        rows = self.rows[weight]
        assert weight.grad is not None, "the rule leaves a gradient"
        _as(rows[self.rank], weight).copy_(weight.grad)
        weight.grad = None
        written = signal()
        self.waiting += 1

        def wait() -> None:
            written()
            total = torch.add(rows[0], rows[1], out=self.total[: weight.numel()])
            for row in rows[2:]:
                total += row
            weight.grad = _as(total, weight)
            self.waiting -= 1
            if self.waiting == 0:
                self.read = signal()

        return wait


def _as(numbers: Tensor, weight: Tensor) -> Tensor:
    """Return a view of as many numbers as lie in the weight, in its order of memory."""
    return numbers.as_strided(weight.shape, weight.stride())


def begin_sum(numbers: Tensor) -> Callable[[], None]:
    """Begin to sum by messages, in place; what is returned waits for the sum."""
    work = dist.all_reduce(numbers, async_op=True)

    def wait() -> None:
        assert work is not None, "it is asynchronous"
        work.wait()

    return wait


def signal() -> Callable[[], None]:
    """Tell the other replicas that this one is here; what is returned waits until all are."""
    return begin_sum(torch.zeros(1))


def open_block(store: TCPStore, name: str, elements: int) -> Tensor | None:
    """Return memory that all replicas see, (replicas, elements); all of them call this together.

    It is gone with the last of them, however they end. None where they are on several nodes or in
    several containers, or on another system than Linux.

    Args:
        store: where they meet.
        name: under which they find it there, a new one each time.
        elements: float32 numbers of a row.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    descriptor = None
    if rank == 0:
        mark, place = f"rayff-{uuid.uuid4().hex}", ""
        if hasattr(os, "memfd_create"):  # no name in a folder, so nothing to clean up
            descriptor = os.memfd_create(mark)
            os.truncate(descriptor, 4 * size * elements)
            place = f"/proc/{os.getpid()}/fd/{descriptor}"
        store.set(name, f"{mark} {place}")
    mark, _, place = store.get(name).decode().partition(" ")
    seen = torch.tensor([float(_is_marked(place, mark))])
    dist.all_reduce(seen, dist.ReduceOp.MIN)
    block = None
    if seen.item():
        block = torch.from_file(place, shared=True, size=size * elements, dtype=torch.float32)
        signal()()  # all have it open
    if descriptor is not None:
        os.close(descriptor)
    return None if block is None else block.view(size, elements)


def _is_marked(place: str, mark: str) -> bool:
    """Return whether it is that file: on another node the place may be anything."""
    try:
        return mark in os.readlink(place) and os.access(place, os.R_OK | os.W_OK)
    except OSError:
        return False
