"""Writes a run's records as it goes: metrics, timeline and events, besides its checkpoints."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rayff.learning.readout import Readouts
from rayff.runs.checkpoint import Checkpoint, Progress
from rayff.runs.checkpoint_manager import CheckpointManager, reason
from rayff.runs.metrics import EpochRecord, IntervalRecord, Metrics
from rayff.runs.timeline import FILE as TIMELINE
from rayff.runs.timeline import Timeline

EVENTS = "events.jsonl"


class RunRecorder:
    """Writes a run's records to its directory; a context manager. No failed write ends the run.

    Args:
        directory: the run directory, which exists.
        checkpoints: its snapshots and checkpoints.
        num_classifiers: layers of the network that give logits.
        tensorboard: whether to write TensorBoard events.
        on_warning: called with what could not be written.

    Attributes:
        reached: batches trained so far, snapshot or not.
        timeline: when each stage did what.
    """

    def __init__(
        self,
        directory: Path,
        checkpoints: CheckpointManager,
        *,
        num_classifiers: int,
        tensorboard: bool,
        on_warning: Callable[[str], None],
    ) -> None:
        self.directory = directory
        self.checkpoints = checkpoints
        self.num_classifiers = num_classifiers
        self.on_warning = on_warning
        self.reached = checkpoints.step
        self._metrics = Metrics(directory, tensorboard=tensorboard)
        self._metrics.load(self.progress.epoch)
        self._readouts = self._newest_readouts()
        self.timeline = Timeline(directory, self.progress.epoch)

    def __enter__(self) -> RunRecorder:
        self.checkpoints.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._metrics.__exit__()
        self.checkpoints.__exit__()

    @property
    def progress(self) -> Progress:
        """Where the run goes on: at its newest snapshot."""
        return self.checkpoints.progress

    @property
    def records(self) -> list[EpochRecord]:
        """Of all epochs, those before a resumption included."""
        return self._metrics.records

    def _newest_readouts(self) -> Readouts:
        """Return those of the newest snapshot; the window of the metrics where it has none."""
        latest = self.checkpoints.latest
        if latest is not None and latest.readouts is not None:
            return latest.readouts
        return Readouts(window=self._metrics.window(default=(0, self.num_classifiers - 1)))

    def go_back(self) -> None:
        """Forget the epochs behind the newest snapshot, which will be trained again."""
        self._metrics.go_back(self.progress.epoch)
        self._readouts = self._newest_readouts()
        self.timeline = Timeline(self.directory, self.progress.epoch)

    def add_epoch(self, record: EpochRecord, readouts: Readouts | None = None) -> None:
        """Write the record of an epoch and the timeline.

        Args:
            record: of the epoch.
            readouts: fitted in it; None leaves those before, but for the window.
        """
        window = record.sip_first, record.sip_last
        self._readouts = readouts or self._readouts.with_window(window)
        self._attempt(
            lambda: self._metrics.append(record),
            f"metrics of epoch {record.epoch} not written ({{}}): they will be with those of the "
            "next epoch",
        )
        self._attempt(self.timeline.write, f"{TIMELINE} could not be written ({{}})")

    def add_interval(self, record: IntervalRecord) -> None:
        """Write the means over the batches since the interval before."""
        self._attempt(lambda: self._metrics.append_interval(record), "batch not logged ({})")

    def add_snapshot(self, snapshot: Checkpoint, *, final: bool) -> None:
        """Keep a snapshot, with the readouts of the newest epoch.

        Raises:
            RunError: the final one cannot be written.
        """
        snapshot = dataclasses.replace(snapshot, readouts=self._readouts)
        at_end = snapshot.progress.batch == 0 and self.records
        record = self.records[-1] if at_end else None
        if record is not None and record.epoch != snapshot.progress.epoch:
            record = None  # of an evaluation before, with other weights
        self.checkpoints.add(snapshot, final=final, record=record)

    def add_event(self, event: str, **facts: Any) -> None:
        """Add a line to events.jsonl: what happened to the run, when and where it stood."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts})

        def append() -> None:
            with (self.directory / EVENTS).open("a") as file:
                file.write(line + "\n")

        self._attempt(append, f"{EVENTS} could not be written ({{}})")

    def poll(self) -> None:
        """Report background work that has ended since the last call."""
        self.checkpoints.poll()

    def _attempt(self, write: Callable[[], None], message: str) -> None:
        try:
            write()
        except OSError as error:
            self.on_warning(message.format(reason(error)))
