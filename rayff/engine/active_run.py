"""A run under way: its directory, callbacks, records and stop request, on any backend."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

from rayff.config.errors import RunError, UserError
from rayff.engine.callbacks import Callback, CallbackList
from rayff.engine.run import PreparedRun, Run, TrainResult
from rayff.engine.stop import StopRequest
from rayff.partition.plan import Plan
from rayff.runs.checkpoint import Checkpoint
from rayff.runs.checkpoint_manager import CheckpointManager, reason
from rayff.runs.files import write_atomically
from rayff.runs.metrics import EpochRecord, best_record
from rayff.runs.record import COMPLETE, FAILED, STOPPED, RunRecord, Session
from rayff.runs.recorder import RunRecorder
from rayff.runs.run_directory import BEST, BEST_RECORD, CONFIG


@dataclass(frozen=True)
class ActiveRun:
    """The objects of a run that outlive its restarts."""

    run: Run
    callbacks: CallbackList
    recorder: RunRecorder
    stop: StopRequest

    def should_stop(self) -> bool:
        """Return whether a signal or a callback asks the run to end at the next chunk."""
        return self.stop.requested or self.callbacks.any_stop_requested

    def result(self) -> TrainResult:
        """Return the outcome of the training so far."""
        return TrainResult(
            run_dir=self.run.directory.path,
            metrics=self.recorder.records,
            epochs=self.run.recipe.epochs,
            stopped_by=self.stop.signum,
            patience=self.run.config.patience,
        )

    @property
    def reason(self) -> str:
        """Why the run has ended, for its record."""
        if self.result().complete:
            return COMPLETE
        signum = self.stop.signum
        return f"{STOPPED} by {'a callback' if signum is None else Signals(signum).name}"


@contextmanager
def start_run(
    run: Run, plan: Plan, callbacks: Sequence[Callback], devices: Sequence[str]
) -> Iterator[ActiveRun]:
    """Make the run directory, start the callbacks, and open the records.

    Args:
        run: what is trained.
        plan: its first plan.
        callbacks: called as the run progresses; each that was started is ended.
        devices: name of each actor's device.

    Raises:
        UserError: the directory cannot be written, or a callback refuses to start.
    """
    run.directory.create(run.config)
    every = CallbackList(callbacks)
    stop = StopRequest(
        lambda name: every.on_warning(
            f"{name}: stopping after the chunks in flight, with a checkpoint (again to stop at "
            "once, without one)"
        )
    )
    session = Session.begin(nodes=plan.nodes, devices=devices)
    record = RunRecord(run.directory.path, session, every.on_warning)
    try:
        every.on_start(run, plan)
        with stop, make_recorder(run, every) as recorder:
            if run.checkpoint is not None and run.checkpoint.step == 0:
                recorder.add_snapshot(run.checkpoint, final=True)  # its source may go
            try:
                keep_missed(run, recorder.records)
            except OSError as error:
                every.on_warning(f"the best model could not be written ({reason(error)})")
            active = ActiveRun(run, every, recorder, stop)
            with _ending(record, active):
                yield active
    except BaseException as error:
        record.end(reason_of(error))
        every.on_end(error)
        raise
    every.on_end(None)


@contextmanager
def _ending(record: RunRecord, active: ActiveRun) -> Iterator[None]:
    """Write how the run ends while its copy elsewhere is still kept up to date."""
    try:
        yield
    except BaseException as error:
        record.end(reason_of(error))
        raise
    record.end(active.reason)


def reason_of(error: BaseException) -> str:
    """Return why a run has ended that an error ends, for its record."""
    if isinstance(error, KeyboardInterrupt):
        return f"{STOPPED} at once by a second signal"
    if isinstance(error, SystemExit):  # so Ray Tune ends the thread of a trial
        return f"{STOPPED} by SystemExit"
    said = textwrap.shorten(str(error), 500, placeholder=" ...")
    kind = "" if isinstance(error, (UserError, RunError)) and said else type(error).__name__
    return f"{FAILED}: {': '.join(part for part in (kind, said) if part)}"


def make_recorder(run: Run, callbacks: Callback) -> RunRecorder:
    """Return the records of a run whose directory exists."""

    def export(snapshot: Checkpoint, record: EpochRecord | None) -> None:
        assert snapshot.readouts is not None, "the recorder gives each snapshot its readouts"
        run.write_model(snapshot, snapshot.readouts, run.resolved.precision)
        if run.config.keep_best and record is not None:
            keep_best(run, snapshot, record)

    manager = CheckpointManager(
        run.checkpoints,
        export,
        run.storage,
        run.checkpoint,
        on_checkpoint=callbacks.on_checkpoint,
        on_warning=callbacks.on_warning,
    )
    return RunRecorder(
        run.directory.path,
        manager,
        num_classifiers=run.num_classifiers,
        tensorboard="tensorboard" in run.config.loggers,
        on_warning=callbacks.on_warning,
    )


def keep_missed(run: PreparedRun, records: Sequence[EpochRecord]) -> None:
    """Keep the model of a run's checkpoint whose process ended before it did, if it is the best.

    Args:
        run: at its checkpoint.
        records: up to there.

    Raises:
        OSError: the disk is full or gone.
    """
    found = run.checkpoint
    if not run.config.keep_best or found is None or found.readouts is None or not records:
        return
    is_of_newest = (found.progress.epoch, found.progress.batch) == (records[-1].epoch, 0)
    if is_of_newest and best_record(records) is records[-1]:
        keep_best(run, found, records[-1])


def keep_best(run: PreparedRun, snapshot: Checkpoint, record: EpochRecord) -> None:
    """Write the model of a snapshot into the folder of the best one, if it is better than that.

    Args:
        run: what is trained.
        snapshot: with its readouts.
        record: of the epoch that ended with it.

    Raises:
        OSError: the disk is full or gone.
    """
    assert snapshot.readouts is not None, "the recorder gives each snapshot its readouts"
    folder = run.directory.path / BEST
    if record.valid_accuracy <= best_accuracy(folder):
        return
    assert run.config.precision is not None, "it is written out where a run begins"
    folder.mkdir(exist_ok=True)
    run.write_model(snapshot, snapshot.readouts, run.config.precision, folder)
    write_atomically(folder / CONFIG, (run.directory.path / CONFIG).read_bytes())
    facts = {n: getattr(record, n) for n in ("epoch", "valid_accuracy", "test_accuracy")}
    write_atomically(folder / BEST_RECORD, json.dumps(facts).encode() + b"\n")


def best_accuracy(folder: Path) -> float:
    """Return the validation accuracy of the model in the folder of the best one, else -1."""
    try:
        return float(json.loads((folder / BEST_RECORD).read_bytes())["valid_accuracy"])
    except (OSError, ValueError, TypeError, KeyError):
        return -1.0
