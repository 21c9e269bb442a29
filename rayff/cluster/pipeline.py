"""The pipeline of actors: the feed, and what becomes of an error.

    commands -> [stage 0] -1-> [stage 1] -2-> ... -> [last stage]
                    |              |                      |
                    3              3                      3
                    v              v                      v
                 reports        reports                reports  -> results, in order

(1, 2) messages go from actor to actor; the driver holds only references, and drops its own as
soon as the next stage is called. (3) small reports come to the driver. At most a window of
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
from rayff.training.messages import Command, Report
from rayff.training.pipeline import Result


class StageLostError(RunError):
    """A stage's process or node died; the run resumes from its last checkpoint."""


class RayPipeline:
    """Stages as actors.

    Args:
        actors: one a stage, in order, set up.
        stage_names: for messages, such as "layers 0-4".
        transport: how messages travel.
        window: commands in flight at most.
    """

    def __init__(
        self,
        actors: list[ActorHandle[Any]],
        stage_names: list[str],
        transport: Transport,
        window: int,
    ) -> None:
        self.actors = actors
        self.stage_names = stage_names
        self.transport = transport
        self.window = window

    def stream(self, commands: Iterable[Command]) -> Iterator[Result]:
        """Carry out commands in order and give back their results in the same order.

        Raises:
            UserError: a stage raised it.
            StageLostError: a stage died.
        """
        flying: deque[tuple[Command, list[ObjectRef[Any]]]] = deque()
        for command in commands:
            flying.append((command, self._submit(command)))
            if len(flying) == self.window:
                yield self._land(*flying.popleft())
        while flying:
            yield self._land(*flying.popleft())

    def _submit(self, command: Command) -> list[ObjectRef[Any]]:
        """Call every stage with the command; return the references of their reports."""
        message: ObjectRef[Any] | None = None
        reports = []
        for actor in self.actors:
            is_last = actor is self.actors[-1]
            message, report = self.transport.call(actor, command, message, is_last=is_last)
            reports.append(report)
        return reports

    def _land(self, command: Command, references: list[ObjectRef[Any]]) -> Result:
        """Wait for the reports of a command, stage by stage."""
        reports: list[Report] = []
        for position, reference in enumerate(references):
            try:
                reports.append(ray.get(reference))
            except RayError as error:
                raise self._explained(error, position) from error
        return command, reports

    def _explained(self, error: RayError, position: int) -> Exception:
        """Return the error as the user is to read it."""
        if isinstance(error, RayTaskError) and isinstance(error.cause, UserError):
            return error.cause
        name = f"stage {position} ({self.stage_names[position]})"
        if isinstance(error, RayActorError):
            return StageLostError(
                f"{name} died: {str(error).strip().splitlines()[-1]}; its last checkpoint stays, "
                "go on with --resume"
            )
        return error


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
