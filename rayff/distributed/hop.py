"""Two actors that hand messages over as stages do, to time the way between them."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import ray
import torch
from ray.actor import ActorHandle

from rayff.distributed.failures import wait_for
from rayff.distributed.transport import (
    DirectTransport,
    Message,
    Place,
    SentTensor,
    Transport,
    own_place,
)
from rayff.engine.commands import Command, Evaluate
from rayff.partition.plan import StageResources

_MESSAGE = Evaluate(epoch=0, split="valid", batches=())


class Hop:
    """An actor at one end: it makes messages as a stage makes activations, or takes them."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.values = torch.zeros(0)

    def place(self) -> Place:
        """Return the devices that Ray gave."""
        return own_place()

    def resize(self, size: int) -> None:
        """Make messages of so many bytes."""
        self.values = torch.zeros(size // 4, device=self.device)

    def handle(self, command: Command, receivers: int, *pieces: Message) -> Any:
        """Send a message through the object store, or take one and return its first value."""
        if receivers:
            return [SentTensor.shared(self.values + 1)], None
        (sent,) = pieces[0]
        return float(sent.receive(self.device)[0])

    def send(self, command: Command) -> Message:
        """Send a message directly."""
        return [SentTensor.direct(self.values + 1)]

    def report(self) -> None:
        """Follow a direct message, as the report of a stage does."""


def start_pair(each: StageResources) -> list[ActorHandle[Any]]:
    """Start a sender and a receiver that know all transports."""
    remote: Any = ray.remote
    actor = remote(**DirectTransport.actor_options)(Hop)
    options = {"num_cpus": each.cpus, "num_gpus": each.gpus}
    return [actor.options(**options).remote("cuda" if each.gpus else "cpu") for _ in range(2)]


def resize(pair: list[ActorHandle[Any]], size: int) -> None:
    """Make messages of so many bytes from now on."""
    wait_for([actor.resize.remote(size) for actor in pair], "made its messages")


def message_s(
    transport: Transport, pair: list[ActorHandle[Any]], count: int, window: int
) -> float:
    """Return the seconds of a message, from the time of many."""
    sender, receiver = pair
    on_the_way: deque[Any] = deque()
    start = time.perf_counter()
    for _ in range(count):
        message, _ = transport.call(sender, _MESSAGE, [], receivers=1, num_pieces=1)
        _, arrival = transport.call(receiver, _MESSAGE, message, receivers=0, num_pieces=0)
        on_the_way.append(arrival)
        del message
        if len(on_the_way) == window:
            _check(on_the_way.popleft())
    while on_the_way:
        _check(on_the_way.popleft())
    return (time.perf_counter() - start) / count


def _check(arrival: Any) -> None:
    if ray.get(arrival) != 1.0:
        raise RuntimeError("a message has arrived with other values than it was sent with")
