"""The training loop: draws commands from the schedule and turns reports into records."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rayff.config.text import plural
from rayff.data.images import Split
from rayff.engine.callbacks import Callback
from rayff.engine.commands import Evaluate, Report, Snapshot, Train
from rayff.engine.pipeline import Pipeline
from rayff.engine.readout_fit import ReadoutFit
from rayff.engine.schedule import Schedule
from rayff.learning.readout import best_window
from rayff.runs.checkpoint import Checkpoint, Progress
from rayff.runs.metrics import EpochRecord, IntervalRecord, best_record, out_of_patience
from rayff.runs.recorder import RunRecorder
from rayff.runs.timeline import Timeline


def _sum(total: NDArray[np.float64], more: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add to a total that may have nothing yet."""
    return total + more if len(total) else more


def _busy_s(reports: Sequence[Report]) -> NDArray[np.float64]:
    return np.array([report.busy_s for report in reports])


def _loss_sums(reports: Sequence[Report]) -> NDArray[np.float64]:
    return np.concatenate([report.loss_sums for report in reports])


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
class IntervalTally:
    """Sums over the batches since the last interval was logged.

    Intervals end at multiples of `every` batches of the run, or with the chunk that holds one.
    """

    every: int | None
    """Batches; None for no intervals."""
    images: int = 0
    loss_sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    train_s: float = 0.0

    def add(
        self, command: Train, reports: Sequence[Report], seconds: float
    ) -> IntervalRecord | None:
        """Add a chunk of training; return the interval where one ends with it."""
        if self.every is None:
            return None
        self.images += reports[0].images
        self.loss_sums = _sum(self.loss_sums, _loss_sums(reports))
        self.train_s += seconds
        step = command.step + len(command.batches)
        if command.step // self.every == step // self.every:
            return None
        layer_loss = self.loss_sums / self.images
        record = IntervalRecord(
            epoch=command.epoch + 1,
            step=step,
            lr=command.lrs[-1],
            loss=float(layer_loss.mean()),
            layer_loss=layer_loss.tolist(),
            images_per_s=self.images / self.train_s if self.train_s else 0.0,
        )
        self.images, self.loss_sums, self.train_s = 0, np.zeros(0), 0.0
        return record


@dataclass
class EpochTally:
    """Sums over the epoch under way."""

    epoch: int = 0
    images: int = 0
    loss_sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """(L,)."""
    hits: dict[Split, NDArray[np.int64]] = field(default_factory=dict)
    """(L, L) a split."""
    evaluated: int = 0
    busy_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """(stages,)."""
    stage_s: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    """Busy or idle, (stages,)."""
    waited_s: float = 0.0
    """Of the first stage, for images."""
    train_s: float = 0.0
    timed_images: int = 0
    readout_fit: ReadoutFit = field(default_factory=ReadoutFit)

    def add(self, command: Train | Evaluate, reports: Sequence[Report], seconds: float) -> None:
        """Add the result of a chunk, which the last stage left `seconds` after the one before."""
        busy_s = _busy_s(reports)
        self.busy_s = _sum(self.busy_s, busy_s)
        self.stage_s = _sum(self.stage_s, busy_s + [report.idle_s for report in reports])
        self.waited_s += reports[0].waited_s
        if isinstance(command, Train):
            self.loss_sums = _sum(self.loss_sums, _loss_sums(reports))
            self.images += reports[0].images
            self.timed_images += reports[0].images
            self.train_s += seconds
        else:
            hits = reports[-1].hits
            assert hits is not None, "the last stage counts the hits"
            self.hits[command.split] = self.hits.get(command.split, 0) + hits
            self.readout_fit.add(command.split, reports[-1])
            self.evaluated += reports[0].images


@dataclass
class Loop:
    """One training, on any pipeline.

    Attributes:
        schedule: the order of the commands.
        cuts: boundaries of the plan, for the records.
        callbacks: called as the run progresses.
        recorder: writes what the run leaves; training goes on from its newest snapshot.
        patience: epochs without a better validation accuracy that end the run at a snapshot.
        log_every: batches from one logging to the next within an epoch; None for none.
        should_stop: asked before each chunk; True ends the run with a snapshot.
        change_plan: called at each snapshot with the seconds of each stage for a batch; True
            leaves the loop there, because the plan changes.
    """

    schedule: Schedule
    cuts: tuple[int, ...]
    callbacks: Callback
    recorder: RunRecorder
    patience: int | None = None
    log_every: int | None = None
    should_stop: Callable[[], bool] = lambda: False
    change_plan: Callable[[list[float]], bool] = lambda stage_s: False

    def train(self, pipeline: Pipeline) -> bool:
        """Drive the pipeline to the end of the run, or to where it is asked to stop.

        Returns:
            False where it left early, behind a snapshot, because the plan changes.

        Raises:
            TrainingDiverged: a loss is not finite; the last good checkpoint stays.
            RunError: the last checkpoint cannot be written.
        """
        start = self.recorder.progress
        tally, pace = EpochTally(start.epoch), Pace()
        interval = IntervalTally(self.log_every)
        tally.images, tally.loss_sums = start.images, np.array(start.loss_sums)
        epoch_began = time.perf_counter()
        previous_end_s: float | None = None
        commands = self.schedule.commands(start.epoch, start.batch, stop=self.should_stop)
        if start.batch == 0 and self._out_of_patience():
            commands = iter([Snapshot(epoch=start.epoch, batch=0, final=True)])
        for command, reports in pipeline.stream(commands):
            now = time.perf_counter()
            # On the last stage's clock: by the driver's, a chunk computed while a snapshot
            # was written would seem to have taken no time.
            end_s = reports[-1].started_s + reports[-1].busy_s
            first = previous_end_s is None
            seconds = end_s - (reports[0].started_s if previous_end_s is None else previous_end_s)
            previous_end_s = end_s
            if isinstance(command, Snapshot):
                spent = command.batch == 0 and self._out_of_patience()
                self._snapshot(command, reports, tally, final=command.final or spent)
                if spent and not command.final:
                    self._say_patience()
                    return True
                if not command.final and pace.stage_s and self.change_plan(pace.stage_s):
                    return False
                pace = Pace()
                continue
            if command.epoch != tally.epoch:
                tally = EpochTally(command.epoch)
            if first:
                began = round(reports[0].started_s, 3)
                self.recorder.add_event(
                    "running", epoch=command.epoch, stages=len(reports), began=began
                )
            _add_to_timeline(self.recorder.timeline, command, reports)
            tally.add(command, reports, seconds)
            if isinstance(command, Train):
                pace.add(command, reports)
                self.recorder.reached = command.step + len(command.batches)
                if (logged := interval.add(command, reports, seconds)) is not None:
                    self.recorder.add_interval(logged)
                    self.callbacks.on_interval(logged)
            self.callbacks.on_chunk_end(command, reports)
            self.recorder.poll()
            if tally.evaluated == self._num_evaluated:
                record = self._record(command.epoch, tally, now - epoch_began)
                window = record.sip_first, record.sip_last
                self.recorder.add_epoch(record, tally.readout_fit.readouts(window))
                self.callbacks.on_epoch_end(record)
                epoch_began = now
        return True

    @property
    def _num_evaluated(self) -> int:
        return self.schedule.num_images["valid"] + self.schedule.num_images["test"]

    def _record(self, epoch: int, tally: EpochTally, elapsed_s: float) -> EpochRecord:
        valid = 100 * tally.hits["valid"] / self.schedule.num_images["valid"]
        test = 100 * tally.hits["test"] / self.schedule.num_images["test"]
        window = best_window(tally.hits["valid"])
        layer_loss = tally.loss_sums / tally.images
        fit, num_test = tally.readout_fit, self.schedule.num_images["test"]
        return EpochRecord(
            epoch=epoch + 1,
            step=(epoch + 1) * self.schedule.batches_per_epoch,
            lr=self.schedule.lr(epoch, self.schedule.batches_per_epoch - 1),
            train_loss=float(layer_loss.mean()),
            valid_accuracy=float(valid[window]),
            test_accuracy=float(test[window]),
            last_valid_accuracy=float(valid[-1, -1]),
            last_test_accuracy=float(test[-1, -1]),
            fusion_test_accuracy=100 * fit.fusion_hits / num_test if fit.fusion else None,
            sip_first=window[0],
            sip_last=window[1],
            images_per_s=tally.timed_images / tally.train_s if tally.train_s else 0.0,
            elapsed_s=elapsed_s,
            layer_loss=layer_loss.tolist(),
            layer_valid_accuracy=valid.diagonal().tolist(),
            layer_test_accuracy=test.diagonal().tolist(),
            stage_busy=(tally.busy_s / tally.stage_s).tolist(),
            cuts=list(self.cuts),
            sip_accuracy=valid.tolist(),
            data_wait=tally.waited_s / float(tally.stage_s[0]),
        )

    def _out_of_patience(self) -> bool:
        return out_of_patience(self.recorder.records, self.patience)

    def _say_patience(self) -> None:
        best, reached = best_record(self.recorder.records), self.recorder.progress.epoch
        self.callbacks.on_warning(
            f"no better validation accuracy for {plural(reached - best.epoch, 'epoch')}: the run "
            f"ends after epoch {reached}; best was {best.reached}"
        )

    def _snapshot(
        self, command: Snapshot, reports: Sequence[Report], tally: EpochTally, *, final: bool
    ) -> None:
        if command.batch == 0:  # at the end of an epoch
            tally = EpochTally(command.epoch)
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
        self.recorder.add_snapshot(snapshot, final=final)


def _add_to_timeline(
    timeline: Timeline, command: Train | Evaluate, reports: Sequence[Report]
) -> None:
    timeline.add(
        epoch=command.epoch + 1,
        kind="train" if isinstance(command, Train) else command.split,
        step=command.step if isinstance(command, Train) else None,
        num_batches=len(command.batches),
        spans=[(report.started_s, report.busy_s) for report in reports],
    )
