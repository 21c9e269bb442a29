"""A whole training on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rayff.config.errors import RunError
from rayff.config.train_config import TrainConfig
from rayff.distributed.controller import Observe, Recovery
from rayff.distributed.flow_control import run_chunk, run_window
from rayff.distributed.loggers import SINKS, check_loggers
from rayff.distributed.pipeline import RayPipeline
from rayff.distributed.placement import nodes, num_actors, stage_resources
from rayff.distributed.session import ray_session
from rayff.distributed.stage_group import open_stage_group
from rayff.engine.preparation import Prepared, prepare
from rayff.partition.plan import Plan, make_plan
from rayff.runs.checkpoint_manager import reason
from rayff.runs.metrics import EpochRecord


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training came to."""

    run_dir: Path
    records: list[EpochRecord]
    """One an epoch, those before a resumption included."""
    stopped_by: int | None
    """Number of the signal that stopped it early, or None."""


def train(
    run: TrainConfig,
    observe: Observe,
    *,
    resume: bool = False,
    notify: Callable[[str], None] = lambda message: None,
) -> TrainResult:
    """Train a network as a pipeline of actors.

    A run that is complete when it is resumed starts none: its model is written anew.

    Args:
        run: what to train, on what and how.
        observe: makes who watches.
        resume: go on from the last checkpoint of the run directory.
        notify: is told, in a sentence, what is waited for, or that nothing is left to do.

    Raises:
        UserError: a mistake in the run or its data, or a cluster that cannot hold the plan.
        RunError: more stages were lost than the run allows, or the model cannot be written.
    """
    check_loggers(run.loggers)
    prepared = prepare(run, resume=resume)
    kept_elsewhere = prepared.storage is not None or SINKS.keys() & set(run.loggers)
    if not kept_elsewhere and (records := prepared.complete_records):  # what is may be behind
        _finish(prepared, records[-1])
        notify(f"the run is complete: {records[-1].reached}; nothing is left to do")
        return TrainResult(run_dir=prepared.directory.path, records=records, stopped_by=None)
    return train_prepared(prepared, observe, notify)


def train_prepared(
    prepared: Prepared, observe: Observe, notify: Callable[[str], None] = lambda message: None
) -> TrainResult:
    """Train a run that was prepared, to the end; a complete one is observed as others are.

    Args:
        prepared: the run.
        observe: makes who watches.
        notify: is told, in a sentence, what is waited for.

    Raises:
        UserError: a cluster that cannot hold the plan.
        RunError: more stages were lost than the run allows.
    """
    with ray_session():
        recovery = Recovery(prepared, observe, notify)
        recorder = recovery.train()
    return TrainResult(
        run_dir=prepared.directory.path, records=recorder.records, stopped_by=recovery.stop.signum
    )


def _finish(prepared: Prepared, last: EpochRecord) -> None:
    """Write the model of a complete run anew: it may be missing, damaged or an epoch behind."""
    assert prepared.checkpoint is not None, "a run without a checkpoint is not complete"
    try:
        prepared.export_model(prepared.checkpoint, (last.sip_first, last.sip_last))
    except OSError as error:
        raise RunError(
            f"the model of the last checkpoint could not be written ({reason(error)}): make room "
            f"in {prepared.directory.path} and go on with --resume"
        ) from error


@contextmanager
def open_pipeline(
    prepared: Prepared, notify: Callable[[str], None]
) -> Iterator[tuple[Plan, RayPipeline]]:
    """Start a run's actors, find the plan, and give each actor its layers; all of it once.

    The actors start before the plan is known: they time the layers on the device where these
    will run. Whatever was started is gone at the end, also after a failed start.
    """
    run, network, there = prepared.run, prepared.architecture, nodes()
    count = num_actors(run, there, len(network))
    each = stage_resources(run, there, count)
    with open_stage_group(prepared, each, count, notify) as stage_group:
        plan = make_plan(run, network, each, stage_group.measure(run, network, notify), count)
        states = None if prepared.checkpoint is None else prepared.checkpoint.states
        window = run_window(prepared, plan, run_chunk(prepared, plan), notify)
        yield plan, stage_group.set_up(prepared, plan, states, window=window, warn=notify)
