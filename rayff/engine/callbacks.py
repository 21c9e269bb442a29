"""Several who watch one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rayff.engine.commands import Evaluate, Report, Train
from rayff.engine.loop import Callback
from rayff.runs.checkpoint import Progress
from rayff.runs.metrics import EpochRecord


@dataclass(frozen=True)
class CallbackList:
    """Tells each of them all there is to tell, in their order; an Callback itself."""

    each: Sequence[Callback]

    def on_result(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """A chunk has passed the last stage."""
        for callback in self.each:
            callback.on_result(command, reports)

    def on_epoch(self, record: EpochRecord) -> None:
        """An epoch is complete."""
        for callback in self.each:
            callback.on_epoch(record)

    def on_checkpoint(self, path: Path) -> None:
        """A checkpoint is on disk."""
        for callback in self.each:
            callback.on_checkpoint(path)

    def on_restart(self, stage_names: Sequence[str], progress: Progress) -> None:
        """The run goes on from a snapshot, with these stages."""
        for callback in self.each:
            callback.on_restart(stage_names, progress)

    def on_warning(self, message: str) -> None:
        """Something went wrong that does not end the run."""
        for callback in self.each:
            callback.on_warning(message)
