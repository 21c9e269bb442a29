"""The process group in which the replicas of a stage add up their gradients (torch.distributed).

The first replica opens a store at its node's address, on a port that the system gives it; all of
them meet there. A process is in one group at a time.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import psutil
import ray
import torch
import torch.distributed as dist
from ray.actor import ActorHandle
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from rayff.distributed.failures import wait_for
from rayff.distributed.shared_sum import SharedSum, begin_sum, open_block
from rayff.partition.profile import AllReduceTime

Address = tuple[str, int]

MEETING_TIMEOUT = timedelta(seconds=60)
SUMMING_TIMEOUT = timedelta(minutes=10)
"""How long a sum waits for a replica that is alive and late; a dead one ends it at once."""
LEAVING_TIMEOUT_S = 5.0
_PROBE_BYTES = 8 * 2**20


def use_own_interface() -> None:
    """Let gloo connect over the interface that has the node's address, in this process.

    By itself it takes the one of the host's name, which on many machines is 127.0.0.1.
    """
    own = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == own for each in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class ReplicaGroup:
    """A replica's own end of the group; it sums for its stage.

    Args:
        device: of the gradients.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._store: TCPStore | None = None
        self._shared: SharedSum | None = None
        self._blocks = 0

    def open(self) -> Address:
        """Open the store where the replicas meet, and return where it is."""
        host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        # a socket of our own: the store would listen on all addresses of the node
        listener = socket.create_server((host, 0))
        port = listener.getsockname()[1]
        self._store = TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=MEETING_TIMEOUT,
            master_listen_fd=listener.detach(),
        )
        return host, port

    def enter(self, address: Address, rank: int, size: int, backend: str) -> None:
        """Meet the others; the first has opened the store."""
        if self._store is None:
            self._store = TCPStore(*address, is_master=False, timeout=MEETING_TIMEOUT)
        dist.init_process_group(
            backend, store=self._store, rank=rank, world_size=size, timeout=SUMMING_TIMEOUT
        )
        self._blocks = 0  # counted alike by all that are in the group

    def leave(self) -> None:
        """Leave the group, where there is one."""
        if dist.is_initialized():
            dist.destroy_process_group()
        self._store = self._shared = None

    def prepare(self, weights: Sequence[Tensor]) -> None:
        """Get ready to sum these at each step; all replicas do so together.

        On CPUs of one node they sum through its memory, and elsewhere by messages.
        """
        self._shared = None
        if self.device.type != "cpu":
            return
        assert self._store is not None, "the group is entered before"
        self._blocks += 1
        elements = sum(weight.numel() for weight in weights)
        block = open_block(self._store, f"block-{self._blocks}", elements)
        if block is not None:
            self._shared = SharedSum(block, dist.get_rank(), weights)

    @property
    def sums_in_memory(self) -> bool:
        """Whether the replicas see the same memory, and sum there."""
        return self._shared is not None

    def start(self, weight: Tensor) -> Callable[[], None]:
        """Begin to sum the weight's gradients, in the order of memory that the weight has."""
        if self._shared is not None:
            return self._shared.start(weight)
        gradient = weight.grad
        assert gradient is not None, "the rule leaves a gradient"
        if gradient.stride() != weight.stride():
            gradient = torch.empty_like(weight).copy_(gradient)
            weight.grad = gradient
        return begin_sum(gradient.as_strided((gradient.numel(),), (1,)))

    def time_all_reduce(self) -> AllReduceTime:
        """Time sums of one number and of many."""
        call_s, whole_s = (self._time(count) for count in (1, _PROBE_BYTES // 4))
        return AllReduceTime(call_s=call_s, byte_s=max(0.0, whole_s - call_s) / _PROBE_BYTES)

    def _time(self, count: int) -> float:
        """Return the seconds of sending a gradient of `count` numbers once."""
        probe = torch.zeros(count, device=self.device)
        self.prepare([probe])
        seconds = []
        for _ in range(4):
            probe.grad = torch.zeros_like(probe)
            dist.barrier()
            start = time.perf_counter()
            self.start(probe)()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds.append(time.perf_counter() - start)
        size = dist.get_world_size()
        return min(seconds) * size / (2 * (size - 1))


def connect(actors: Sequence[ActorHandle[Any]], backend: str) -> None:
    """Let the replicas of a stage form their group."""
    (address,) = wait_for([actors[0].open_group.remote()], "opened the group of its replicas")
    wait_for(
        [
            actor.enter_group.remote(address, rank, len(actors), backend)
            for rank, actor in enumerate(actors)
        ],
        "met its replicas",
    )


def disconnect(actors: Sequence[ActorHandle[Any]]) -> None:
    """Let the replicas of a stage leave their group, those that are still there."""
    calls = [actor.leave_group.remote() for actor in actors]
    ray.wait(calls, num_returns=len(calls), timeout=LEAVING_TIMEOUT_S)


def time_all_reduce(actors: Sequence[ActorHandle[Any]], backend: str) -> AllReduceTime:
    """Return what it takes these actors to send a gradient once."""
    connect(actors, backend)
    calls = [actor.time_all_reduce.remote() for actor in actors]
    times: list[AllReduceTime] = wait_for(calls, "timed the all_reduce of gradients")
    disconnect(actors)
    return max(times, key=lambda found: found.byte_s)
