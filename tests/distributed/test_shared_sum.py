"""Sums through shared memory, in processes of their own; no Ray."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from rayff.distributed.replica_group import ReplicaGroup
from torch import Tensor

from rayff.distributed import shared_sum
from tests.jobs.ray_nodes import free_ports

WEIGHTS = [
    torch.zeros(3, 4, 3, 3).to(memory_format=torch.channels_last),
    torch.zeros(5, 7),
    torch.zeros(1, 1, 1, 1),
    torch.zeros(64, 80, 3, 3).to(memory_format=torch.channels_last),
]
STEPS = 25


def as_replica(rank: int, size: int, port: int, work: Callable[[ReplicaGroup], Any]) -> Any:
    """Do the work as one of the replicas."""
    torch.set_num_threads(1)
    group = ReplicaGroup(torch.device("cpu"))
    if rank == 0:
        group._store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    group.enter(("127.0.0.1", port), rank, size, "gloo")
    try:
        return work(group)
    finally:
        group.leave()


def replicas(size: int, work: Callable[[ReplicaGroup], Any]) -> list[Any]:
    (port,) = free_ports(1)
    with ProcessPoolExecutor(size, mp_context=get_context("spawn")) as pool:
        calls = [pool.submit(as_replica, rank, size, port, work) for rank in range(size)]
        return [call.result(timeout=120) for call in calls]


def gradient(weight: int, step: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + 10 * rank + weight)
    return torch.randn(WEIGHTS[weight].shape, generator=generator)


def sum_many(group: ReplicaGroup) -> tuple[bool, list[str]]:
    """Sum step after step, now and then late; return what is not the sum in the order of ranks."""
    rank, size = dist.get_rank(), dist.get_world_size()
    late = random.Random(rank)
    group.prepare(WEIGHTS)
    wrong = []
    for step in range(STEPS):
        waits = []
        for number, weight in enumerate(WEIGHTS):
            weight.grad = gradient(number, step, rank)
            waits.append(group.start(weight))
            time.sleep(late.choice([0, 0, 0, 0.01]))
        for number, (weight, wait) in enumerate(zip(WEIGHTS, waits, strict=True)):
            wait()
            time.sleep(late.choice([0, 0, 0, 0.01]))
            expected = gradient(number, step, 0)
            for other in range(1, size):
                expected = expected + gradient(number, step, other)
            assert weight.grad is not None
            within = 0 if group.sums_in_memory else 1e-5
            if not torch.allclose(weight.grad, expected, rtol=0, atol=within):
                wrong.append(f"step {step}, weight {number}")
            if weight.grad.stride() != weight.stride():
                wrong.append(f"order of weight {number}")
    return group.sums_in_memory, wrong


@pytest.mark.parametrize("size", [2, 3])
def test_every_sum_is_that_of_its_step_however_late_a_replica_is(size: int):
    assert replicas(size, sum_many) == [(True, [])] * size


def sum_where_one_does_not_see(group: ReplicaGroup) -> tuple[bool, list[str]]:
    if dist.get_rank() == 1:
        shared_sum._is_marked = lambda place, mark: False
    return sum_many(group)


def test_one_that_does_not_see_the_memory_makes_all_sum_by_messages():
    assert replicas(2, sum_where_one_does_not_see) == [(False, [])] * 2


def open_and_close(group: ReplicaGroup) -> tuple[int, int]:
    """Return how many files and mappings a block leaves that is no longer used."""
    assert group._store is not None

    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count("rayff-")

    files, maps = held()
    block = shared_sum.open_block(group._store, "once", 5)
    assert block is not None
    assert held() == (files, maps + 1)
    del block
    return held()[0] - files, held()[1] - maps


def test_a_block_leaves_no_file_and_no_memory():
    assert replicas(2, open_and_close) == [(0, 0)] * 2


def without_memfd(group: ReplicaGroup) -> tuple[bool, list[str]]:
    if dist.get_rank() == 0:
        del os.memfd_create
    return sum_many(group)


def test_another_system_than_linux_sums_by_messages():
    assert replicas(2, without_memfd) == [(False, [])] * 2


def test_another_file_in_the_same_place_is_not_taken_for_the_block():
    descriptor = os.memfd_create("rayff-one")
    place = f"/proc/{os.getpid()}/fd/{descriptor}"
    assert shared_sum._is_marked(place, "rayff-one")
    assert not shared_sum._is_marked(place, "rayff-other")
    os.close(descriptor)
    assert not shared_sum._is_marked(place, "rayff-one")
    assert not shared_sum._is_marked("", "rayff-one")
