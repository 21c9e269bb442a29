"""A cluster of several nodes on this machine, whose nodes come and go: for attacks and tests."""

from __future__ import annotations

import os
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from rayff.config.environment import set_ray_defaults
from rayff.distributed.session import patiently

SYSTEM = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""A dead node is declared so within seconds, not after 15; see docs/checkpoints.md."""


class LocalNodes:
    """A head without CPUs, and nodes with CPUs; a context manager.

    Args:
        count: of nodes at first.
        store_bytes: of the object store of each.
        cpus: of each.

    Attributes:
        running: the nodes that are there, in the order in which they came.
        environment: of a process that is to join the cluster.
    """

    def __init__(self, count: int, store_bytes: int = 200 * 2**20, cpus: int = 1) -> None:
        set_ray_defaults()
        self.count = count
        self.store_bytes = store_bytes
        self.cpus = cpus
        head = {"num_cpus": 0, "_system_config": SYSTEM, "include_dashboard": False}
        self.cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.running: list[Any] = []
        for _ in range(count):
            self.add()
        self.environment = {**os.environ, "RAY_ADDRESS": self.cluster.address}

    def __enter__(self) -> LocalNodes:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cluster.shutdown()  # type: ignore[no-untyped-call]

    def add(self) -> None:
        """Start a node; the cluster sees it a moment later."""
        size = {"num_cpus": self.cpus, "object_store_memory": self.store_bytes}
        self.running.append(patiently(lambda: self.cluster.add_node(wait=False, **size)))

    def remove(self, index: int) -> None:
        """Kill a node's raylet, and with it what runs under it."""
        self.cluster.remove_node(self.running.pop(index), allow_graceful=False)

    def stages(self) -> list[int]:
        """Return the processes of all stages, whose names Ray sets."""
        found = []
        for node in self.running:
            for raylet in node.all_processes.get("raylet", []):
                try:
                    children = psutil.Process(raylet.process.pid).children()
                    found += [c.pid for c in children if "StageActor" in " ".join(c.cmdline())]
                except psutil.NoSuchProcess:
                    continue
        return found
