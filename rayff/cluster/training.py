"""A whole training on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rayff.cluster.crew import open_crew
from rayff.cluster.loggers import check_loggers
from rayff.cluster.pipeline import RayPipeline
from rayff.cluster.placement import nodes, num_actors, stage_resources
from rayff.cluster.recovery import Observe, Recovery
from rayff.cluster.session import ray_session
from rayff.cluster.window import run_chunk, run_window
from rayff.partition.plan import Plan, make_plan
from rayff.spec import RunSpec
from rayff.training.preparation import Prepared, prepare
from rayff.training.records import EpochRecord


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training came to."""

    run_dir: Path
    records: list[EpochRecord]
    """One an epoch, those before a resumption included."""
    stopped_by: int | None
    """Number of the signal that stopped it early, or None."""


def train(
    run: RunSpec,
    observe: Observe,
    *,
    resume: bool = False,
    notify: Callable[[str], None] = lambda message: None,
) -> TrainResult:
    """Train a network as a pipeline of actors.

    Args:
        run: what to train, on what and how.
        observe: makes who watches.
        resume: go on from the last checkpoint of the run directory.
        notify: is told, in a sentence, what is waited for.

    Raises:
        UserError: a mistake in the run or its data, or a cluster that cannot hold the plan.
        RunError: more stages were lost than the run allows.
    """
    check_loggers(run.loggers)
    prepared = prepare(run, resume=resume)
    with ray_session():
        recovery = Recovery(prepared, observe, notify)
        keeper = recovery.train()
    return TrainResult(
        run_dir=prepared.directory.path, records=keeper.records, stopped_by=recovery.stop.signum
    )


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
    with open_crew(prepared, each, count, notify) as crew:
        plan = make_plan(run, network, each, crew.measure(run, network, notify), count)
        states = None if prepared.checkpoint is None else prepared.checkpoint.states
        window = run_window(prepared, plan, run_chunk(prepared, plan), notify)
        yield plan, crew.set_up(prepared, plan, states, window=window, warn=notify)
