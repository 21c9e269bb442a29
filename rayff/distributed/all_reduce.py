"""All-reduce of gradients among the replicas of a stage, by a process group of torch.distributed.

The first replica opens a store at its node's address, on a port that the system gives it, through
which all of them connect. A process is in one group at a time.
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
from rayff.partition.layer_costs import AllReduceTime

Address = tuple[str, int]

MEETING_TIMEOUT = timedelta(seconds=60)
SUMMING_TIMEOUT = timedelta(minutes=10)
"""How long an all-reduce waits for a replica that is late; a dead one ends it at once."""
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
    """A replica's membership of its stage's process group.

    Args:
        device: of the gradients.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._store: TCPStore | None = None

    def open(self) -> Address:
        """Open the store, and return its address."""
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
        """Join the group; the first replica has opened the store."""
        if self._store is None:
            self._store = TCPStore(*address, is_master=False, timeout=MEETING_TIMEOUT)
        dist.init_process_group(
            backend, store=self._store, rank=rank, world_size=size, timeout=SUMMING_TIMEOUT
        )

    def leave(self) -> None:
        """Leave the group, where there is one."""
        if dist.is_initialized():
            dist.destroy_process_group()
        self._store = None

    def start(self, parameter: Tensor) -> Callable[[], None]:
        """Start to sum a parameter's gradient over the replicas; the result waits for it."""
        gradient = parameter.grad
        assert gradient is not None, "the step leaves a gradient"
        if gradient.stride() != parameter.stride():
            gradient = torch.empty_like(parameter).copy_(gradient)
            parameter.grad = gradient
        flat = gradient.as_strided((gradient.numel(),), (1,))
        work = dist.all_reduce(flat, async_op=True)

        def wait() -> None:
            assert work is not None, "it is asynchronous"
            work.wait()

        return wait

    def time_all_reduce(self) -> AllReduceTime:
        """Time all-reduces of one number and of many."""
        call_s, whole_s = (self._time(count) for count in (1, _PROBE_BYTES // 4))
        return AllReduceTime(call_s=call_s, byte_s=max(0.0, whole_s - call_s) / _PROBE_BYTES)

    def _time(self, count: int) -> float:
        """Return the seconds of sending a gradient of `count` numbers once."""
        probe = torch.zeros(count, device=self.device)
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
    """Connect the replicas of a stage to one process group."""
    (address,) = wait_for([actors[0].open_group.remote()], "opened the group of its replicas")
    wait_for(
        [
            actor.enter_group.remote(address, rank, len(actors), backend)
            for rank, actor in enumerate(actors)
        ],
        "connected to its replicas",
    )


def disconnect(actors: Sequence[ActorHandle[Any]]) -> None:
    """Let the replicas of a stage that are alive leave their group."""
    calls = [actor.leave_group.remote() for actor in actors]
    ray.wait(calls, num_returns=len(calls), timeout=LEAVING_TIMEOUT_S)


def time_all_reduce(actors: Sequence[ActorHandle[Any]], backend: str) -> AllReduceTime:
    """Return the time that these actors need to send a gradient once."""
    connect(actors, backend)
    calls = [actor.time_all_reduce.remote() for actor in actors]
    times: list[AllReduceTime] = wait_for(calls, "timed the all-reduce of gradients")
    disconnect(actors)
    return max(times, key=lambda found: found.byte_s)
