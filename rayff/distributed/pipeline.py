"""The pipeline of actors: it submits commands, yields their results, and explains errors.

    commands -> [stage 0] -1-> [stage 1] -2-> ... -> [last stage]
                    |              |                      |
                    3              3                      3
                    v              v                      v
                 reports        reports                reports  -> results, in order

(1, 2) messages go from actor to actor; the driver holds only references, and drops its own as
soon as the next stage is called; a stage of several replicas sends and takes pieces of them, as
rayff.engine.replicas says. (3) small reports come to the driver. At most a window of
commands is between the first stage and the results.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from rayff.config.errors import UserError
from rayff.distributed.failures import StageFailedError, is_failure, is_lost_input
from rayff.distributed.transport import Transport
from rayff.engine.commands import Command, Report, Snapshot
from rayff.engine.pipeline import Result
from rayff.engine.replicas import Replica, merge

VERDICT_S = 5.0
"""How long the other replicas of a stage may take to report their own failure."""
POLL_S = 0.5
"""How often the driver, while it waits for a report, checks the other stages."""
STORE_EVERY_S = 1.0
"""Seconds from one check of the object store to the next."""
STORE_RESERVE = 0.35
"""Share of the object store that is to stay free: where it does not, the window shrinks. Ray
begins to spill when a fifth is left."""


class RayPipeline:
    """Stages as actors.

    Args:
        stages: the actors of each stage, in order, set up: one, or its replicas.
        stage_names: for messages, such as "layers 0-4".
        transport: how messages travel.
        window: commands in flight at most.
        warn: called when the window shrinks.
    """

    def __init__(
        self,
        stages: list[list[ActorHandle[Any]]],
        stage_names: list[str],
        transport: Transport,
        window: int,
        warn: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.stages = stages
        self.stage_names = stage_names
        self.transport = transport
        self.window = window
        self.warn = warn
        self._in_flight: deque[tuple[Command, list[list[ObjectRef[Any]]]]] = deque()
        self._store_checked_s = time.monotonic()

    @property
    def actors(self) -> list[ActorHandle[Any]]:
        """The actors of all stages, in order."""
        return [actor for stage in self.stages for actor in stage]

    @property
    def in_flight(self) -> int:
        """Commands between the first stage and the results."""
        return len(self._in_flight)

    def stream(self, commands: Iterable[Command]) -> Iterator[Result]:
        """Carry out commands in order and give back their results in the same order.

        Raises:
            UserError: a stage raised it.
            StageFailedError: a stage died.
            RunError: the replicas of a stage no longer agree.
        """
        for command in commands:
            self._in_flight.append((command, self._submit(command)))
            self._check_store()
            while len(self._in_flight) >= self.window:
                yield self._receive()
        while self._in_flight:
            yield self._receive()

    def _submit(self, command: Command) -> list[list[ObjectRef[Any]]]:
        """Call every actor with the command; return the references of each stage's reports."""
        reports: list[list[ObjectRef[Any]]] = []
        pieces: list[list[ObjectRef[Any]]] = [[] for _ in self.stages[0]]  # for each receiver
        for stage, after in zip(self.stages, [*self.stages[1:], []], strict=True):
            receivers = 0 if isinstance(command, Snapshot) else len(after)
            onward: list[list[ObjectRef[Any]]] = [[] for _ in after]
            reports.append([])
            for index, actor in enumerate(stage):
                to = Replica(index=index, count=len(stage)).receivers(receivers)
                sent, report = self.transport.call(
                    actor, command, pieces[index], receivers=receivers, num_pieces=len(to)
                )
                for receiver, piece in zip(to, sent, strict=True):
                    onward[receiver].append(piece)
                reports[-1].append(report)
            pieces = onward
        return reports

    def _receive(self) -> Result:
        """Wait for the reports of the oldest command in flight, stage by stage."""
        command, references = self._in_flight[0]
        reports: list[Report] = []
        for position, of_stage in enumerate(references):
            self._wait(of_stage)
            reports.append(self._merged(of_stage, position))
        self._in_flight.popleft()
        if isinstance(command, Snapshot):
            reports = [_own_memory(report) for report in reports]
        return command, reports

    def _wait(self, references: list[ObjectRef[Any]]) -> None:
        """Wait for some reports; a stage that dies meanwhile, whichever, is an error at once."""
        count = len(references)
        while len(ray.wait(references, num_returns=count, timeout=POLL_S)[0]) < count:
            for _, of_stages in self._in_flight:
                for position, of_stage in enumerate(of_stages):
                    if ray.wait(of_stage, num_returns=len(of_stage), timeout=0)[1]:
                        break  # nothing behind it is done either
                    self._merged(of_stage, position)

    def _merged(self, references: list[ObjectRef[Any]], position: int) -> Report:
        try:
            return merge(ray.get(references))
        except RayError as error:
            raise self._explained(error, references, position) from error

    def _check_store(self) -> None:
        """Shrink the window where the object store is nearly full, since spilling is slower.

        The store also holds objects of other work.
        """
        now = time.monotonic()
        if now - self._store_checked_s < STORE_EVERY_S or self.window == 1:
            return
        self._store_checked_s = now
        there = store_bytes()
        free = there - store_used()
        if free < STORE_RESERVE * there:
            self.window -= 1
            self.warn(
                f"the object store is nearly full ({free / 2**20:.0f} of {there / 2**20:.0f} MiB "
                f"free): the window shrinks to {self.window} chunks; a larger "
                "--object-store-memory of `ray start`, or a smaller --chunk, keeps it open"
            )

    def _explained(
        self, error: RayError, references: list[ObjectRef[Any]], position: int
    ) -> Exception:
        """Return the error that the user reads.

        Of several replicas one fails first and the others' sums break: the first is what counts.
        """
        failed = _failures(references) or [(0, error)]
        for _, each in failed:
            if isinstance(each, RayTaskError) and isinstance(each.cause, UserError):
                return each.cause
        name = f"stage {position} ({self.stage_names[position]})"
        for replica, each in failed:
            if is_lost_input(each) and position:
                before = f"stage {position - 1} ({self.stage_names[position - 1]})"
                return StageFailedError(before, "what it had sent on is lost with its node")
            if is_failure(each):
                which = f", replica {replica}," if len(references) > 1 else ""
                return StageFailedError(name + which, each)
        return error


def _own_memory(report: Report) -> Report:
    """Return a snapshot's report with bytes of this process: a view would pin the store's."""
    states = {index: np.array(state) for index, state in report.states.items()}
    return dataclasses.replace(report, states=states)


def store_bytes() -> int:
    """Return the size of the object stores of all nodes."""
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return int(there.get("object_store_memory", 0.0))


def store_used() -> int:
    """Return how much of the object stores is in use; what Ray does not list is full."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return store_bytes() - int(free.get("object_store_memory", 0.0))


def _failures(references: list[ObjectRef[Any]]) -> list[tuple[int, RayError]]:
    """Return the errors of a stage's replicas, which have a moment to show, by replica."""
    done, _ = ray.wait(references, num_returns=len(references), timeout=VERDICT_S)
    found = []
    for replica, reference in enumerate(references):
        if reference in done:
            try:
                ray.get(reference)
            except RayError as error:
                found.append((replica, error))
    return found
