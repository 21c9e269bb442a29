"""The training loop: it draws commands from the schedule and turns results into records."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rayff.data.images import Split
from rayff.learning.sip import best_window
from rayff.spec import RunError
from rayff.training.checkpoint import Checkpoint, Progress
from rayff.training.messages import Evaluate, Report, Snapshot, Train
from rayff.training.pipeline import Pipeline
from rayff.training.preparation import Prepared
from rayff.training.records import EpochRecord, Metrics
from rayff.training.schedule import Schedule
from rayff.training.stop import StopRequest
from rayff.training.timeline import Timeline


class Observer(Protocol):
    """Who watches a run: the console view, a search, a test."""

    def on_result(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """A chunk has passed the last stage."""
        ...

    def on_epoch(self, record: EpochRecord) -> None:
        """An epoch is complete."""
        ...

    def on_checkpoint(self, path: Path) -> None:
        """A checkpoint is on disk."""
        ...

    def on_warning(self, message: str) -> None:
        """Something went wrong that does not end the run."""
        ...


@dataclass
class EpochTally:
    """Sums over the epoch under way."""

    images: int = 0
    loss_sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """(L,)."""
    hits: dict[Split, NDArray[np.int64]] = field(default_factory=dict)
    """(L, L) a split."""
    evaluated: int = 0
    busy_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """(stages,)."""
    train_s: float = 0.0
    timed_images: int = 0

    def add(self, command: Train | Evaluate, reports: Sequence[Report], seconds: float) -> None:
        """Add the result of a chunk that took `seconds` since the one before."""
        busy = np.array([report.busy_s for report in reports])
        self.busy_s = self.busy_s + busy if len(self.busy_s) else busy
        if isinstance(command, Train):
            losses = np.concatenate([report.loss_sums for report in reports])
            self.loss_sums = self.loss_sums + losses if len(self.loss_sums) else losses
            self.images += reports[0].images
            self.timed_images += reports[0].images
            self.train_s += seconds
        else:
            hits = reports[-1].hits
            assert hits is not None, "the last stage counts the hits"
            self.hits[command.split] = self.hits.get(command.split, 0) + hits
            self.evaluated += reports[0].images


@dataclass
class Loop:
    """One training, on whichever pipeline.

    Attributes:
        prepared: the run, its data, network and directory.
        schedule: the order of the commands.
        cuts: of the plan, for the records.
        observer: who watches.
    """

    prepared: Prepared
    schedule: Schedule
    cuts: tuple[int, ...]
    observer: Observer

    def train(self, pipeline: Pipeline, stop: StopRequest) -> list[EpochRecord]:
        """Drive the pipeline to the end of the run, or to where `stop` asks.

        Returns:
            the records of all epochs, those before a resumption included.

        Raises:
            TrainingDiverged: a loss is not finite; the last good checkpoint stays.
            RunError: the last checkpoint cannot be written.
        """
        start = self.prepared.progress
        tally = EpochTally(images=start.images, loss_sums=np.array(start.loss_sums))
        epoch_began = before = time.perf_counter()
        commands = self.schedule.commands(start.epoch, start.batch, stop=lambda: stop.requested)
        with Metrics(self.prepared.directory.path) as metrics:
            metrics.load(start.epoch)
            timeline = Timeline(self.prepared.directory.path, start.epoch)
            for command, reports in pipeline.stream(commands):
                now = time.perf_counter()
                timeline.add(command, reports)
                if isinstance(command, Snapshot):
                    self._snapshot(command, reports, tally, metrics)
                    before = time.perf_counter()
                    continue
                tally.add(command, reports, now - before)
                before = now
                self.observer.on_result(command, reports)
                if tally.evaluated == self._num_evaluated:
                    record = self._record(command.epoch, tally, now - epoch_began)
                    try:
                        metrics.append(record)
                        timeline.write()
                    except OSError as error:
                        self.observer.on_warning(
                            f"metrics of epoch {record.epoch} not written ({error.strerror}): "
                            "they will be with those of the next epoch"
                        )
                    self.observer.on_epoch(record)
                    tally, epoch_began = EpochTally(), now
            return metrics.records

    @property
    def _num_evaluated(self) -> int:
        return self.schedule.num_images["valid"] + self.schedule.num_images["test"]

    def _record(self, epoch: int, tally: EpochTally, elapsed_s: float) -> EpochRecord:
        valid = 100 * tally.hits["valid"] / self.schedule.num_images["valid"]
        test = 100 * tally.hits["test"] / self.schedule.num_images["test"]
        window = best_window(tally.hits["valid"])
        layer_loss = tally.loss_sums / tally.images
        return EpochRecord(
            epoch=epoch + 1,
            step=(epoch + 1) * self.schedule.batches_per_epoch,
            lr=self.schedule.lr(epoch),
            train_loss=float(layer_loss.mean()),
            valid_accuracy=float(valid[window]),
            test_accuracy=float(test[window]),
            sip_first=window[0],
            sip_last=window[1],
            images_per_s=tally.timed_images / tally.train_s if tally.train_s else 0.0,
            elapsed_s=elapsed_s,
            layer_loss=layer_loss.tolist(),
            layer_valid_accuracy=valid.diagonal().tolist(),
            layer_test_accuracy=test.diagonal().tolist(),
            stage_busy=(tally.busy_s / elapsed_s).tolist(),
            cuts=list(self.cuts),
            sip_accuracy=valid.tolist(),
        )

    def _snapshot(
        self,
        command: Snapshot,
        reports: Sequence[Report],
        tally: EpochTally,
        metrics: Metrics,
    ) -> None:
        prepared = self.prepared
        states = {index: state for report in reports for index, state in report.states.items()}
        progress = Progress(
            epoch=command.epoch,
            batch=command.batch,
            images=tally.images,
            loss_sums=tuple(tally.loss_sums.tolist()),
        )
        step = command.epoch * self.schedule.batches_per_epoch + command.batch
        assert prepared.run.precision is not None, "settled before training"
        try:
            path = prepared.checkpoints.write(
                Checkpoint(step=step, progress=progress, states=states)
            )
            prepared.directory.export_model(
                prepared.architecture,
                states,
                window=metrics.window(default=(0, len(prepared.architecture) - 1)),
                class_names=prepared.data.class_names,
                precision=prepared.run.precision,
            )
        except OSError as error:
            what = f"the checkpoint of step {step} could not be written ({error.strerror})"
            if command.final:
                raise RunError(
                    f"{what}; the one before it stays: make room in "
                    f"{prepared.directory.path} and go on with --resume"
                ) from error
            self.observer.on_warning(f"{what}: training goes on, the one before it stays")
        else:
            self.observer.on_checkpoint(path)
