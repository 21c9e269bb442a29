"""Callbacks: called as a run progresses. Every method of the base class does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rayff.engine.commands import Evaluate, Report, Train
from rayff.partition.plan import Plan
from rayff.runs.checkpoint import Progress
from rayff.runs.metrics import EpochRecord, IntervalRecord

if TYPE_CHECKING:
    from rayff.engine.run import Run


class Callback:
    """Base class of callbacks; override what you need.

    They are called in the driver's process, between two chunks: a slow one slows the run.

    Attributes:
        stop_requested: whether the run is to end at the next chunk, with a checkpoint.
    """

    stop_requested = False

    def request_stop(self) -> None:
        """Ask the run to end at the next chunk, with a checkpoint that it can be resumed from."""
        self.stop_requested = True

    def on_start(self, run: Run, plan: Plan) -> None:
        """The run directory exists and the plan is known; nothing is trained yet."""

    def on_chunk_end(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """The last stage has processed a chunk; there is a report of each stage."""

    def on_epoch_end(self, record: EpochRecord) -> None:
        """An epoch is trained and evaluated."""

    def on_interval(self, record: IntervalRecord) -> None:
        """As many batches as `--log-every` says are trained, at the end of a chunk."""

    def on_checkpoint(self, path: Path) -> None:
        """A checkpoint is complete on disk, in the folder `path`."""

    def on_restart(self, stage_names: Sequence[str], progress: Progress) -> None:
        """The run continues from a snapshot, after a failure or with another plan."""

    def on_warning(self, message: str) -> None:
        """Something went wrong that does not end the run; may come before on_start."""

    def on_end(self, error: BaseException | None) -> None:
        """The run has ended: by `error`, or, where that is None, complete or stopped."""


class CallbackList(Callback):
    """Calls several callbacks in their order, and at the end in the reverse order.

    Args:
        callbacks: the callbacks.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = list(callbacks)
        self._started: list[Callback] = []

    @property
    def any_stop_requested(self) -> bool:
        """Whether one of them asks the run to end."""
        return any(callback.stop_requested for callback in self.callbacks)

    def on_start(self, run: Run, plan: Plan) -> None:
        """Start each; one that fails to start ends the run, and those before it."""
        for callback in self.callbacks:
            callback.stop_requested = False  # of a run before
            callback.on_start(run, plan)
            self._started.append(callback)

    def on_chunk_end(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """Call each."""
        for callback in self.callbacks:
            callback.on_chunk_end(command, reports)

    def on_epoch_end(self, record: EpochRecord) -> None:
        """Call each."""
        for callback in self.callbacks:
            callback.on_epoch_end(record)

    def on_interval(self, record: IntervalRecord) -> None:
        """Call each."""
        for callback in self.callbacks:
            callback.on_interval(record)

    def on_checkpoint(self, path: Path) -> None:
        """Call each."""
        for callback in self.callbacks:
            callback.on_checkpoint(path)

    def on_restart(self, stage_names: Sequence[str], progress: Progress) -> None:
        """Call each."""
        for callback in self.callbacks:
            callback.on_restart(stage_names, progress)

    def on_warning(self, message: str) -> None:
        """Call each."""
        for callback in self.callbacks:
            callback.on_warning(message)

    def on_end(self, error: BaseException | None) -> None:
        """Call each that was started, also where one of them raises."""
        with ExitStack() as stack:
            for callback in self._started:
                stack.callback(callback.on_end, error)
            self._started = []
