"""Failures: processes and nodes that died, distinguished from errors of the code."""

from __future__ import annotations

from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import (
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from rayff.config.errors import RunError, UserError

_ADVICE = " Some common causes"
"""Where Ray's account of a death turns into a page of guesses."""
_FAILURES = (RayActorError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)


class StageFailedError(RunError):
    """A stage's process or node died; the run goes on from its last snapshot.

    Attributes:
        stage: which, such as "stage 1 (layers 2-3)".
        cause: what Ray says of it.
    """

    def __init__(self, stage: str, cause: object) -> None:
        self.stage = stage
        lines = str(cause).strip().splitlines() or [type(cause).__name__]
        self.cause = lines[-1].partition(_ADVICE)[0].strip().rstrip(".")
        super().__init__(f"{stage} died: {self.cause}")


class NoGpuError(UserError):
    """A node has a GPU by Ray's account, and torch sees none there."""


def is_failure(error: RayError) -> bool:
    """Return whether a process or node died, or an object with it: no error raised by code."""
    if isinstance(error, RayTaskError):
        return isinstance(error.cause, _FAILURES)
    return isinstance(error, _FAILURES)


def is_lost_input(error: RayError) -> bool:
    """Return whether a call failed because the object it was called with is lost."""
    return isinstance(error, RayTaskError) and isinstance(error.cause, ObjectLostError)


def wait_for(references: list[ObjectRef[Any]], what: str) -> list[Any]:
    """Wait for calls that set stages up; a UserError of theirs comes out as itself.

    Raises:
        StageFailedError: one of them died while it `what`.
    """
    try:
        return list(ray.get(references))
    except RayError as error:
        if isinstance(error, RayTaskError) and isinstance(error.cause, UserError):
            raise error.cause from error
        if is_failure(error):
            raise StageFailedError(f"a stage that {what}", error) from error
        raise
