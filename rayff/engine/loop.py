"""The training loop: it draws commands from the schedule and turns results into records."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rayff.data.images import Split
from rayff.engine.commands import Evaluate, Report, Snapshot, Train
from rayff.engine.pipeline import Pipeline
from rayff.engine.preparation import Prepared
from rayff.engine.schedule import Schedule
from rayff.engine.stop import StopRequest
from rayff.learning.readout import best_window
from rayff.runs.checkpoint import Checkpoint, Progress
from rayff.runs.checkpoint_manager import RunRecorder, Told
from rayff.runs.metrics import EpochRecord


class Callback(Told, Protocol):
    """Who watches a run: the console view, a search, a test."""

    def on_result(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """A chunk has passed the last stage."""
        ...

    def on_epoch(self, record: EpochRecord) -> None:
        """An epoch is complete."""
        ...

    def on_restart(self, stage_names: Sequence[str], progress: Progress) -> None:
        """The run goes on from a snapshot, with these stages."""
        ...


def _sum(total: NDArray[np.float64], more: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add to a total that may have nothing yet."""
    return total + more if len(total) else more


def _busy_s(reports: Sequence[Report]) -> NDArray[np.float64]:
    return np.array([report.busy_s for report in reports])


@dataclass
class Pace:
    """How long the stages take for a batch, since the last snapshot."""

    busy_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """(stages,)."""
    batches: int = 0

    def add(self, command: Train, reports: Sequence[Report]) -> None:
        """Add a chunk of training."""
        self.busy_s = _sum(self.busy_s, _busy_s(reports))
        self.batches += len(command.batches)

    @property
    def stage_s(self) -> list[float] | None:
        """Seconds of each stage for a batch; None before the first."""
        return (self.busy_s / self.batches).tolist() if self.batches else None


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
        """Add the result of a chunk, which the last stage left `seconds` after the one before."""
        self.busy_s = _sum(self.busy_s, _busy_s(reports))
        if isinstance(command, Train):
            losses = np.concatenate([report.loss_sums for report in reports])
            self.loss_sums = _sum(self.loss_sums, losses)
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
        callback: who watches.
        recorder: keeps what the run leaves behind; training goes on from its newest snapshot.
        change: is told at each snapshot how long the stages take for a batch, and says whether
            the plan is to change there.
    """

    prepared: Prepared
    schedule: Schedule
    cuts: tuple[int, ...]
    callback: Callback
    recorder: RunRecorder
    change: Callable[[list[float]], bool] = lambda stage_s: False

    def train(self, pipeline: Pipeline, stop: StopRequest) -> bool:
        """Drive the pipeline to the end of the run, or to where `stop` asks.

        Returns:
            False where it left early, behind a snapshot, because the plan is to change.

        Raises:
            TrainingDiverged: a loss is not finite; the last good checkpoint stays.
            RunError: the last checkpoint cannot be written.
        """
        start = self.recorder.progress
        tally, pace = EpochTally(images=start.images, loss_sums=np.array(start.loss_sums)), Pace()
        epoch_began = time.perf_counter()
        left_before: float | None = None
        commands = self.schedule.commands(start.epoch, start.batch, stop=lambda: stop.requested)
        for command, reports in pipeline.stream(commands):
            now = time.perf_counter()
            # On the last stage's clock: by the driver's, a chunk computed while a snapshot
            # was written would seem to have taken no time.
            left = reports[-1].started_s + reports[-1].busy_s
            seconds = left - (reports[0].started_s if left_before is None else left_before)
            first, left_before = left_before is None, left
            self.recorder.timeline.add(command, reports)
            if isinstance(command, Snapshot):
                self._snapshot(command, reports, tally)
                if not command.final and pace.stage_s and self.change(pace.stage_s):
                    return False
                pace = Pace()
                continue
            if first:
                self.recorder.add_event("running", epoch=command.epoch, stages=len(reports))
            tally.add(command, reports, seconds)
            if isinstance(command, Train):
                pace.add(command, reports)
                self.recorder.reached = command.step + len(command.batches)
            self.callback.on_result(command, reports)
            self.recorder.poll()
            if tally.evaluated == self._num_evaluated:
                record = self._record(command.epoch, tally, now - epoch_began)
                self.recorder.add_epoch(record)
                self.callback.on_epoch(record)
                tally, epoch_began = EpochTally(), now
        return True

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

    def _snapshot(self, command: Snapshot, reports: Sequence[Report], tally: EpochTally) -> None:
        snapshot = Checkpoint(
            step=command.epoch * self.schedule.batches_per_epoch + command.batch,
            progress=Progress(
                epoch=command.epoch,
                batch=command.batch,
                images=tally.images,
                loss_sums=tuple(tally.loss_sums.tolist()),
            ),
            states={index: state for report in reports for index, state in report.states.items()},
        )
        self.recorder.add_snapshot(snapshot, final=command.final)
