"""Several who watch one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rayff.training.checkpoint import Progress
from rayff.training.loop import Observer
from rayff.training.messages import Evaluate, Report, Train
from rayff.training.records import EpochRecord


@dataclass(frozen=True)
class Observers:
    """Tells each of them all there is to tell, in their order; an Observer itself."""

    each: Sequence[Observer]

    def on_result(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """A chunk has passed the last stage."""
        for observer in self.each:
            observer.on_result(command, reports)

    def on_epoch(self, record: EpochRecord) -> None:
        """An epoch is complete."""
        for observer in self.each:
            observer.on_epoch(record)

    def on_checkpoint(self, path: Path) -> None:
        """A checkpoint is on disk."""
        for observer in self.each:
            observer.on_checkpoint(path)

    def on_restart(self, stage_names: Sequence[str], progress: Progress) -> None:
        """The run goes on from a snapshot, with these stages."""
        for observer in self.each:
            observer.on_restart(stage_names, progress)

    def on_warning(self, message: str) -> None:
        """Something went wrong that does not end the run."""
        for observer in self.each:
            observer.on_warning(message)
