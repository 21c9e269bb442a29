"""The pipeline of actors: the feed, and what becomes of an error.

    commands -> [stage 0] -1-> [stage 1] -2-> ... -> [last stage]
                    |              |                      |
                    3              3                      3
                    v              v                      v
                 reports        reports                reports  -> results, in order

(1, 2) messages go from actor to actor; the driver holds only references, and drops its own as
soon as the next stage is called; a stage of several replicas sends and takes pieces of them, as
rayff.training.replicas says. (3) small reports come to the driver. At most a window of
commands is between the first stage and the results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError

from rayff.cluster.transport import Transport
from rayff.spec import RunError, UserError
from rayff.training.messages import Command, Report, Snapshot
from rayff.training.pipeline import Result
from rayff.training.replicas import Replica, merge

VERDICT_S = 5.0
"""How long the other replicas of a stage have to say why one of them failed."""


class StageLostError(RunError):
    """A stage's process or node died; the run resumes from its last checkpoint."""


class RayPipeline:
    """Stages as actors.

    Args:
        stages: the actors of each stage, in order, set up: one, or its replicas.
        stage_names: for messages, such as "layers 0-4".
        transport: how messages travel.
        window: commands in flight at most.
    """

    def __init__(
        self,
        stages: list[list[ActorHandle[Any]]],
        stage_names: list[str],
        transport: Transport,
        window: int,
    ) -> None:
        self.stages = stages
        self.stage_names = stage_names
        self.transport = transport
        self.window = window

    @property
    def actors(self) -> list[ActorHandle[Any]]:
        """The actors of all stages, in order."""
        return [actor for stage in self.stages for actor in stage]

    def stream(self, commands: Iterable[Command]) -> Iterator[Result]:
        """Carry out commands in order and give back their results in the same order.

        Raises:
            UserError: a stage raised it.
            StageLostError: a stage died.
            RunError: the replicas of a stage no longer agree.
        """
        flying: deque[tuple[Command, list[list[ObjectRef[Any]]]]] = deque()
        for command in commands:
            flying.append((command, self._submit(command)))
            if len(flying) == self.window:
                yield self._land(*flying.popleft())
        while flying:
            yield self._land(*flying.popleft())

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

    def _land(self, command: Command, references: list[list[ObjectRef[Any]]]) -> Result:
        """Wait for the reports of a command, stage by stage."""
        reports: list[Report] = []
        for position, of_stage in enumerate(references):
            try:
                reports.append(merge(ray.get(of_stage)))
            except RayError as error:
                raise self._explained(error, of_stage, position) from error
        return command, reports

    def _explained(
        self, error: RayError, references: list[ObjectRef[Any]], position: int
    ) -> Exception:
        """Return the error as the user is to read it.

        Of several replicas one fails first and the others' sums break: the first is what counts.
        """
        failed = _failures(references) or [(0, error)]
        for _, each in failed:
            if isinstance(each, RayTaskError) and isinstance(each.cause, UserError):
                return each.cause
        name = f"stage {position} ({self.stage_names[position]})"
        for replica, each in failed:
            if isinstance(each, RayActorError):
                which = f", replica {replica}," if len(references) > 1 else ""
                return StageLostError(
                    f"{name}{which} died: {str(each).strip().splitlines()[-1]}; its last "
                    "checkpoint stays, go on with --resume"
                )
        return error


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


def wait_for(references: list[ObjectRef[Any]], what: str) -> list[Any]:
    """Wait for calls that set stages up; a UserError of theirs comes out as itself."""
    try:
        return list(ray.get(references))
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error
        raise
    except RayActorError as error:
        raise StageLostError(f"a stage died while it {what}: {error}") from error
