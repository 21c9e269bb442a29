"""Nothing is lost: a run that loses a stage or a node goes on from its newest snapshot.

    count what the cluster holds -> start a stage_group -> set up from the newest snapshot -> train
        ^                                               ^                                |
        |                                               +--- rebalance, at a snapshot ---+
        +--- a stage or node is lost; there is room for more stages, at a snapshot ------+

A stage that died is never restarted alone: its batches are gone, and so all layers go back to the
batch of the snapshot. The bits do not depend on the plan, so neither do they on how often this
happens. What each actor takes of the cluster is decided once: the number of threads decides bits.
"""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

import ray

from rayff.config.errors import RunError, UserError
from rayff.config.text import plural
from rayff.config.train_config import Placement, TrainConfig
from rayff.distributed.failures import StageFailedError
from rayff.distributed.flow_control import run_chunk, run_window
from rayff.distributed.loggers import SINKS, RunLogger
from rayff.distributed.placement import (
    APART,
    RESERVE_TIMEOUT_S,
    NoRoomError,
    actor_range,
    nodes,
    num_actors,
    room,
    stage_resources,
)
from rayff.distributed.ray_metrics import Feed, run_metrics
from rayff.distributed.stage_group import open_stage_group
from rayff.engine.callbacks import CallbackList
from rayff.engine.learner import States
from rayff.engine.loop import Callback, Loop
from rayff.engine.pipeline import Pipeline
from rayff.engine.preparation import Prepared
from rayff.engine.stop import StopRequest
from rayff.models.architecture import Architecture
from rayff.partition.plan import Measured, Plan, StageResources, make_plan, rebalanced
from rayff.runs.checkpoint_manager import RunRecorder

Observe = Callable[[Prepared, Plan], AbstractContextManager[Callback]]
"""Makes who watches a run, once its plan is known."""


class WatchedPipeline(Pipeline, Feed, Protocol):
    """A pipeline that says how much is in flight."""


class StageGroup(Protocol):
    """Actors or workers that were started, and may be set up again and again."""

    @property
    def num_actors(self) -> int:
        """How many they are."""
        ...

    @property
    def node_names(self) -> tuple[str, ...]:
        """Where each is; nothing where there is one node only."""
        ...

    def has_room_beside(self, more: int, placement: Placement) -> bool:
        """Return whether that many more would find room now."""
        ...

    def measure(
        self, run: TrainConfig, network: Architecture, notify: Callable[[str], None]
    ) -> Measured:
        """Time the network on them."""
        ...

    def set_up(
        self,
        prepared: Prepared,
        plan: Plan,
        states: States | None,
        *,
        window: int,
        warn: Callable[[str], None] = lambda message: None,
    ) -> WatchedPipeline:
        """Give them the network, the data and the layers of a snapshot."""
        ...


OpenStageGroup = Callable[
    [Prepared, StageResources, int, Callable[[str], None], float],
    AbstractContextManager[StageGroup],
]
"""Starts a stage_group of so many, each with such resources, within so many seconds."""


NARROWER_AFTER_S = 20.0
"""How long a run that may have fewer stages waits for the resources of more."""
VERDICT_S = 90.0
"""How long a node that does not answer may take to be declared dead: 15 s by default, and 65 s
where the network is cut."""
_KNOCK_S = 2.0


class Recovery:
    """One training with all its restarts.

    Args:
        prepared: the run.
        observe: makes who watches.
        notify: is told, in a sentence, what is waited for.
    """

    def __init__(
        self, prepared: Prepared, observe: Observe, notify: Callable[[str], None]
    ) -> None:
        self.prepared = prepared
        self.observe = observe
        self.notify = notify
        self.stop = StopRequest()
        self.failures = 0
        there, num_layers = nodes(), len(prepared.architecture)
        self.fewest, self.most = actor_range(prepared.run, there, num_layers)
        count = num_actors(prepared.run, there, num_layers)
        self.each = stage_resources(prepared.run, there, count)
        self._open = _stage_group_factory(prepared.run)
        self.measured: Measured | None = None
        self.plan: Plan | None = None
        self.recorder: RunRecorder | None = None
        self._widen = False

    def train(self) -> RunRecorder:
        """Train to the end, or to where a signal asks, whatever is lost on the way.

        Raises:
            RunError: more was lost than --max-failures allows, or what is left of the cluster
                cannot go on.
            UserError: a mistake in the run, or a cluster that cannot hold it at all.
        """
        with ExitStack() as whole_run:
            most = self.most
            while True:
                try:
                    count = self._count(most)
                    if count == 0:
                        break
                    patience_s = NARROWER_AFTER_S if self.fewest < count else RESERVE_TIMEOUT_S
                    with self._open(
                        self.prepared, self.each, count, self.notify, patience_s
                    ) as stage_group:
                        if self._train_with(stage_group, whole_run):
                            break
                    most = self.most
                except NoRoomError as error:
                    if count == self.fewest or self.recorder is None:
                        raise self._ended(str(error), error) from error
                    most = count - 1
                except StageFailedError as error:
                    self._lost(error)
                    if self.stop.requested:
                        break
                    await_verdict()
                    most = self.most
            assert self.recorder is not None, "a run that was not begun has raised"
        return self.recorder

    def _count(self, most: int) -> int:
        """Return how many actors the cluster holds; 0 where a signal ended the wait for them."""
        deadline = time.monotonic() + RESERVE_TIMEOUT_S
        run = self.prepared.run
        while (held := room(nodes(), self.each, apart=run.apart)) < self.fewest:
            if self.recorder is None:
                stage_resources(run, nodes(), self.fewest)  # says what is missing
            if self.stop.requested:
                return 0
            wanted = (
                f"{plural(self.fewest, 'actor')} of {self.each}{APART if run.apart else ''}, of "
                f"which the cluster holds {held}"
            )
            if time.monotonic() > deadline:
                raise self._ended(f"waited {RESERVE_TIMEOUT_S:g} s for {wanted}", None)
            self.notify(f"waiting for {wanted}")
            time.sleep(5.0)
        return min(most, held)

    def _train_with(self, stage_group: StageGroup, whole_run: ExitStack) -> bool:
        """Train with these actors; return whether that was all."""
        if self.measured is None:
            run, network = self.prepared.run, self.prepared.architecture
            self.measured = stage_group.measure(run, network, self.notify)
        count = stage_group.num_actors
        if self.plan is None or self.plan.num_actors != count:
            self.plan = self._plan_for(count)
        self.plan = dataclasses.replace(self.plan, nodes=stage_group.node_names)
        again = self.recorder is not None
        if not again:
            self._begin(self.plan, whole_run)
        while True:
            plan, recorder = self.plan, self.recorder
            assert recorder is not None
            if again:
                recorder.go_back()
                self.callback.on_restart(plan.stage_names, recorder.progress)
            again = True
            recorder.add_event(
                "planned", stages=plan.stage_names, epochs_done=recorder.progress.epoch
            )
            if self._stream(stage_group, plan, recorder):
                return True
            if self._widen:
                self._widen = False
                return False

    def _stream(self, stage_group: StageGroup, plan: Plan, recorder: RunRecorder) -> bool:
        """Set up from the newest snapshot and train; return whether the run is over."""
        prepared = self.prepared
        chunk = run_chunk(prepared, plan)
        states = None if recorder.latest is None else recorder.latest.states
        warn = self.callback.on_warning
        window = run_window(prepared, plan, chunk, warn)
        pipeline = stage_group.set_up(prepared, plan, states, window=window, warn=warn)
        self.metrics.feed = pipeline
        loop = Loop(
            prepared=prepared,
            schedule=prepared.schedule(chunk),
            cuts=plan.cuts,
            callback=self.callback,
            recorder=recorder,
            change=lambda stage_s: self._changes(stage_group, stage_s),
        )
        return loop.train(pipeline, self.stop)

    def _plan_for(self, count: int) -> Plan:
        assert self.measured is not None
        prepared = self.prepared
        return make_plan(prepared.run, prepared.architecture, self.each, self.measured, count)

    def _begin(self, plan: Plan, whole_run: ExitStack) -> None:
        """Make the run directory and those that fill and watch it, until the run is over."""
        self.prepared = self.prepared.settled(plan.precision, plan.kernels)
        self.prepared.directory.create(self.prepared.run)
        loggers = [
            whole_run.enter_context(RunLogger(name, self.prepared, lambda text: self.notify(text)))
            for name in self.prepared.run.loggers
            if name in SINKS
        ]
        view = whole_run.enter_context(self.observe(self.prepared, plan))
        self.metrics = whole_run.enter_context(run_metrics(self.prepared, plan))
        self.callback = CallbackList([view, self.metrics, *loggers])
        self.notify = self.callback.on_warning
        self.stop = whole_run.enter_context(
            StopRequest(
                lambda name: self.callback.on_warning(
                    f"{name}: stopping behind the chunks in flight, with a checkpoint "
                    "(again to stop at once, without one)"
                )
            )
        )
        self.recorder = whole_run.enter_context(RunRecorder(self.prepared, self.callback))

    def _changes(self, stage_group: StageGroup, stage_s: list[float]) -> bool:
        """Say at a snapshot whether the plan is to change: for more stages, or other cuts."""
        assert self.plan is not None
        assert self.recorder is not None
        count = self.plan.num_actors
        if self.fewest < self.most and count < self.most:
            run = self.prepared.run
            more = min(self.most, room(nodes(), self.each, apart=run.apart)) - count
            if more > 0 and stage_group.has_room_beside(more, run.placement):
                self._widen = True
                self.callback.on_warning(
                    f"the cluster has room for {count + more} stages again: going on with them"
                )
                return True
        if self.prepared.run.rebalance:
            better = rebalanced(self.plan, stage_s)
            if better.cuts != self.plan.cuts:
                self.callback.on_warning(
                    f"the stages take {', '.join(f'{s:.3g}' for s in stage_s)} s for a batch: "
                    f"moving the cuts from {_shown(self.plan.cuts)} to {_shown(better.cuts)}"
                )
                self.recorder.add_event("rebalanced", stage_s=stage_s, cuts=list(better.cuts))
                self.plan = better
                return True
        return False

    def _lost(self, error: StageFailedError) -> None:
        """Count a loss and say it.

        Raises:
            RunError: it is one more than --max-failures allows.
        """
        self.failures += 1
        allowed = self.prepared.run.max_failures
        if self.recorder is not None:
            self.recorder.add_event(
                "lost",
                stage=error.stage,
                cause=error.cause,
                step=self.recorder.reached,
                snapshot=self.recorder.step,
            )
        if 0 <= allowed < self.failures:
            raise self._ended(
                f"{error}; that was failure {self.failures}, and --max-failures is {allowed}",
                error,
            ) from error
        of = "" if allowed < 0 else f" of {allowed}"
        self.notify(f"{error}; failure {self.failures}{of}, starting again from {self._where()}")

    def _where(self) -> str:
        latest = None if self.recorder is None else self.recorder.latest
        return "the beginning" if latest is None else f"the snapshot of step {latest.step}"

    def _ended(self, what: str, error: Exception | None) -> Exception:
        """Return the error that ends the run; before it began, the mistake is the user's."""
        if self.recorder is None and isinstance(error, UserError):
            return error
        kept = self.recorder is not None and self.recorder.latest is not None
        then = "its last checkpoint stays, go on with --resume" if kept else "start it again"
        return RunError(f"{what}; {then}")


def await_verdict() -> None:
    """Wait until the cluster has declared dead each node that does not answer.

    Until then it would place a new stage on a dying node.
    """
    deadline = time.monotonic() + VERDICT_S
    while time.monotonic() < deadline:
        found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        alive = [node for node in found if node["Alive"]]
        if all(_answers(n["NodeManagerAddress"], n["NodeManagerPort"]) for n in alive):
            return
        time.sleep(0.5)


def _stage_group_factory(run: TrainConfig) -> OpenStageGroup:
    if run.method == "ff":
        return open_stage_group
    from rayff.baselines.torch_trainer import open_workers  # Ray Train takes a second to import

    return open_workers


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), _KNOCK_S).close()
    except OSError:
        return False
    return True


def _shown(cuts: tuple[int, ...]) -> str:
    return ",".join(map(str, cuts)) or "none"
