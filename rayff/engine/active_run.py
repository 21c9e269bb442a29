"""A run under way: its directory, callbacks, records and stop request, on any backend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rayff.engine.callbacks import Callback, CallbackList
from rayff.engine.run import Run, TrainResult
from rayff.engine.stop import StopRequest
from rayff.partition.plan import Plan
from rayff.runs.checkpoint import Checkpoint
from rayff.runs.checkpoint_manager import CheckpointManager
from rayff.runs.recorder import RunRecorder


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
        )


@contextmanager
def start_run(run: Run, plan: Plan, callbacks: Sequence[Callback]) -> Iterator[ActiveRun]:
    """Make the run directory, start the callbacks, and open the records.

    Args:
        run: what is trained.
        plan: its first plan.
        callbacks: called as the run progresses; each that was started is ended.

    Raises:
        UserError: the directory cannot be written, or a callback refuses to start.
    """
    run.directory.create(run.config)
    every = CallbackList(callbacks)
    stop = StopRequest(
        lambda name: every.on_warning(
            f"{name}: stopping behind the chunks in flight, with a checkpoint (again to stop at "
            "once, without one)"
        )
    )
    try:
        every.on_start(run, plan)
        with stop, make_recorder(run, every) as recorder:
            yield ActiveRun(run, every, recorder, stop)
    except BaseException as error:
        every.on_end(error)
        raise
    every.on_end(None)


def make_recorder(run: Run, callbacks: Callback) -> RunRecorder:
    """Return the records of a run whose directory exists."""

    def export(snapshot: Checkpoint) -> None:
        assert snapshot.readouts is not None, "the recorder gives each snapshot its readouts"
        run.write_model(snapshot, snapshot.readouts, run.resolved.precision)

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
