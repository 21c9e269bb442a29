"""The controller: starts the actors of a run, trains, and acts on the failure policy.

    look for room -> start actors -> set up from the newest snapshot -> train
        ^                                        ^                       |
        |                                        +--- other boundaries --+
        +--- a stage or node failed; there is room for more actors ------+

A stage that died is never restarted alone: its batches are gone, and so all layers go back to the
batch of the snapshot. The bits do not depend on the plan, so neither do they on how often this
happens. The resources of an actor are decided once: its number of threads decides bits.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import ray

from rayff.config.activity import activity
from rayff.config.errors import RunError, UserError
from rayff.config.text import plural
from rayff.distributed.actor_group import (
    ActorGroup,
    Capabilities,
    ClusterPipeline,
    group_opener,
)
from rayff.distributed.failure_policy import (
    AtSnapshot,
    Capacity,
    Continue,
    End,
    Fail,
    Finished,
    NotReserved,
    Rebalance,
    Retry,
    RunState,
    StageFailed,
    Start,
    Wait,
    Widen,
    decide,
)
from rayff.distributed.failures import NoGpuError, StageFailedError
from rayff.distributed.flow_control import run_chunk, run_window
from rayff.distributed.last_word import answers
from rayff.distributed.loggers import run_loggers
from rayff.distributed.placement import (
    APART,
    NoRoomError,
    actor_range,
    capacity,
    nodes,
    num_actors,
    stage_resources,
)
from rayff.distributed.ray_metrics import RayMetrics
from rayff.distributed.reading import SharedImages, hand_over
from rayff.distributed.session import Session, ray_session
from rayff.engine.active_run import ActiveRun, start_run
from rayff.engine.callbacks import Callback, CallbackList
from rayff.engine.loop import Loop
from rayff.engine.resolution import resolve_run, warn_of_missing_kernels
from rayff.engine.run import PreparedRun, Run, TrainResult
from rayff.partition.boundaries import Costs
from rayff.partition.plan import Plan, make_plan, rebalanced
from rayff.runs.run_directory import resume_command

VERDICT_S = 90.0
"""How long a node that does not answer may take to be declared dead: 15 s by default, and 65 s
where the network is cut."""
_CONNECT_S = 2.0


def train_on_cluster(
    prepared: PreparedRun,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train a run as actors, to the end or to where a signal or a callback asks.

    Args:
        prepared: the run.
        callbacks: called as the run progresses; with warnings also before it begins.

    Raises:
        UserError: a mistake in the run, or a cluster that cannot hold the plan.
        RunError: more failures than the run allows.
    """
    with ray_session() as session:
        with activity("sharing the images"):
            images = hand_over(prepared.data)
        try:
            return _train(prepared, images, callbacks, session)
        except NoGpuError as error:
            config = prepared.config
            if config.device != "auto" or config.gpus_per_stage is not None:
                raise
            CallbackList(callbacks).on_warning(f"{error}: training on CPUs")
            on_cpus = dataclasses.replace(config, device="cpu")
            prepared = dataclasses.replace(prepared, config=on_cpus)
            return _train(prepared, images, callbacks, session)


def _train(
    prepared: PreparedRun, images: SharedImages, callbacks: Sequence[Callback], session: Session
) -> TrainResult:
    with ExitStack() as whole_run:
        controller = Controller(prepared, images, callbacks, whole_run, session)
        session.on_lost = controller.end_at_once
        return controller.train()


class Controller:
    """One training with all its restarts.

    Args:
        prepared: the run.
        images: its images, in the object store.
        callbacks: of the user and the console.
        whole_run: closes what lives as long as the run.
        session: the connection to Ray.
    """

    def __init__(
        self,
        prepared: PreparedRun,
        images: SharedImages,
        callbacks: Sequence[Callback],
        whole_run: ExitStack,
        session: Session,
    ) -> None:
        self.prepared = prepared
        self.images = images
        self.callbacks = callbacks
        self.whole_run = whole_run
        self.session = session
        config, there, layers = prepared.config, nodes(), len(prepared.architecture)
        fewest, most = actor_range(config, there, layers)
        self.resources = stage_resources(config, there, num_actors(config, there, layers))
        self.state = RunState(fewest=fewest, most=most, max_failures=config.max_failures)
        self.ray_metrics = RayMetrics()
        self.active: ActiveRun | None = None
        self.costs: Costs | None = None
        self.plan: Plan | None = None

    def train(self) -> TrainResult:
        """Train to the end, whatever fails on the way.

        Raises:
            RunError: more failed than --max-failures allows, or what is left of the cluster
                cannot go on.
            UserError: a mistake in the run, or a cluster that cannot hold it at all.
        """
        action: Any = Retry(self.state.most)
        while isinstance(action, (Retry, Widen)):
            wanted = action.most if isinstance(action, Retry) else action.actors
            if isinstance(action, Retry) and action.after_failure:
                await_verdict()
            action = self._train_with(wanted)
        assert self.active is not None, "a run that was not begun has raised"
        return self.active.result()

    def _train_with(self, wanted: int) -> Retry | Widen | End:
        """Find room for so many actors or fewer, start them and train."""
        start = self._find_room(wanted)
        if isinstance(start, End):
            return start
        opener = group_opener(self.prepared.config.method)
        try:
            with opener(
                self.prepared, self.resources, start.actors, self._warn, start.patience_s
            ) as group:
                return self._train_group(group)
        except NoRoomError as error:
            action = decide(NotReserved(start.actors), self._now())
            if isinstance(action, Retry):
                return action
            raise self._failed(str(error), error) from error
        except StageFailedError as error:
            return self._on_failure(error)

    def _find_room(self, wanted: int) -> Start | End:
        """Wait until the cluster can hold the run's actors."""
        config, began = self.prepared.config, time.monotonic()
        while True:
            held = capacity(nodes(), self.resources, apart=config.apart)
            waited_s = time.monotonic() - began
            action = decide(Capacity(held, wanted, waited_s), self._now())
            if isinstance(action, (Start, End)):
                return action
            missing = (
                f"{plural(self.state.fewest, 'actor')} of {self.resources}"
                f"{APART if config.apart else ''}, of which the cluster holds {held}"
            )
            if isinstance(action, Fail):
                if self.active is None:
                    stage_resources(config, nodes(), self.state.fewest)  # names what is missing
                raise self._failed(f"waited {waited_s:.0f} s for {missing}", None)
            assert isinstance(action, Wait)
            self._warn(f"waiting for {missing}")
            time.sleep(action.seconds)

    def _train_group(self, group: ActorGroup) -> Retry | Widen | End:
        """Train with these actors until the run is over, or its plan needs others."""
        self.state = dataclasses.replace(self.state, actors=group.num_actors)
        restart = self.active is not None
        active = self.active or self._begin(group)
        run, plan = active.run, self.plan
        if plan is None or plan.num_actors != group.num_actors:
            plan = self._plan_for(run, group.num_actors)
        self.plan = dataclasses.replace(plan, nodes=group.node_names)
        while True:
            if restart:
                active.recorder.go_back()
                active.callbacks.on_restart(self.plan.stage_names, active.recorder.progress)
            restart = True
            active.recorder.add_event(
                "planned",
                stages=self.plan.stage_names,
                epochs_done=active.recorder.progress.epoch,
            )
            change = self._stream(group, active, self.plan)
            if not isinstance(change, Rebalance):
                return change

    def _begin(self, group: ActorGroup) -> ActiveRun:
        """Resolve the run by its devices, plan it, and make what lives as long as it does."""
        prepared = self.prepared
        capabilities = group.capabilities()
        common = Capabilities.common(capabilities)
        run = resolve_run(prepared, common.precision, common.device_class, group.autotune)
        on_gpu = self.resources.gpus > 0
        warn_of_missing_kernels(run, common.missing, self._warn, on_gpu=on_gpu)
        self.costs = group.measure(run)
        plan = self._plan_for(run, group.num_actors)
        self.plan = dataclasses.replace(plan, nodes=group.node_names)
        callbacks = [*self.callbacks, self.ray_metrics, *run_loggers(run, self._warn)]
        devices = [each.name for each in capabilities]
        self.active = self.whole_run.enter_context(start_run(run, self.plan, callbacks, devices))
        self.session.begin(run.directory.path, "checkpoints/step-*/manifest.json")
        self.state = dataclasses.replace(self.state, begun=True)
        return self.active

    def _plan_for(self, run: Run, count: int) -> Plan:
        assert self.costs is not None, "measured when the run begins"
        batch_size = run.recipe.batch_size
        return make_plan(
            run.config, run.architecture, self.resources, self.costs, count, batch_size
        )

    def _stream(self, group: ActorGroup, active: ActiveRun, plan: Plan) -> Rebalance | Widen | End:
        """Set up from the newest snapshot and train until the run is over or its plan changes."""
        run = active.run
        chunk = run_chunk(run, plan)
        latest = active.recorder.checkpoints.latest
        window = run_window(run, plan, chunk, self._warn)
        states = None if latest is None else latest.states
        pipeline: ClusterPipeline = group.set_up(run, plan, self.images, states, window)
        self.ray_metrics.pipeline = pipeline
        changes: list[Rebalance | Widen] = []

        def change_plan(stage_s: list[float]) -> bool:
            action = self._at_snapshot(group, active, plan, stage_s)
            if isinstance(action, (Rebalance, Widen)):
                changes.append(action)
            return bool(changes)

        loop = Loop(
            schedule=run.schedule(chunk),
            cuts=plan.cuts,
            callbacks=active.callbacks,
            recorder=active.recorder,
            patience=run.config.patience,
            log_every=run.config.log_every,
            should_stop=active.should_stop,
            change_plan=change_plan,
        )
        if loop.train(pipeline):
            assert isinstance(decide(Finished(), self._now()), End)
            return End()
        return changes[0]

    def _at_snapshot(
        self, group: ActorGroup, active: ActiveRun, plan: Plan, stage_s: list[float]
    ) -> Continue | Rebalance | Widen:
        """Decide at a snapshot whether the plan changes, and say it."""
        config, state = active.run.config, self._now()
        free = 0
        if state.may_widen:
            held = capacity(nodes(), self.resources, apart=config.apart)
            free = max(0, min(state.most, held) - state.actors)
            free = free if free and group.free_room(free) else 0
        better = rebalanced(plan, stage_s) if config.rebalance else plan
        action = decide(AtSnapshot(free, better.cuts != plan.cuts), state)
        if isinstance(action, Widen):
            self._warn(
                f"the cluster has room for {action.actors} stages again: going on with them"
            )
        elif isinstance(action, Rebalance):
            times = ", ".join(f"{seconds:.3g}" for seconds in stage_s)
            self._warn(
                f"the stages take {times} s for a batch: moving the boundaries from "
                f"{_shown(plan.cuts)} to {_shown(better.cuts)}"
            )
            active.recorder.add_event("rebalanced", stage_s=stage_s, cuts=list(better.cuts))
            self.plan = better
        else:
            assert isinstance(action, Continue)
        return action

    def _on_failure(self, error: StageFailedError) -> Retry | End:
        """Count a failure and decide what follows.

        Raises:
            RunError: it is one more than --max-failures allows.
        """
        self.state = dataclasses.replace(self.state, failures=self.state.failures + 1)
        number, allowed = self.state.failures, self.state.max_failures
        if self.active is not None:
            recorder = self.active.recorder
            recorder.add_event(
                "failure",
                stage=error.stage,
                cause=error.cause,
                step=recorder.reached,
                snapshot=recorder.checkpoints.step,
            )
        action = decide(StageFailed(), self._now())
        if isinstance(action, Fail):
            raise self._failed(
                f"{error}; that was failure {number}, and --max-failures is {allowed}", error
            ) from error
        of = "" if allowed < 0 else f" of {allowed}"
        self._warn(f"{error}; failure {number}{of}, starting again from {self._where()}")
        assert isinstance(action, (Retry, End))
        return action

    def end_at_once(self, cause: str) -> str:
        """Bring the newest snapshot to the disk and end the callbacks: Ray is lost.

        Called from another thread, while that of the run may be stuck in a call of Ray.

        Returns:
            the cause, with how to go on.
        """
        if self.active is not None:
            self.active.recorder.checkpoints.settle()
        text = f"{cause}; {self.session.how_to_go_on()}"
        if self.active is not None:
            self.active.callbacks.on_end(RunError(text))
        return text

    def _now(self) -> RunState:
        """Return the state with the present requests to stop."""
        stop = self.active is not None and self.active.should_stop()
        return dataclasses.replace(self.state, stop_requested=stop)

    def _warn(self, message: str) -> None:
        CallbackList(self.callbacks).on_warning(message)

    def _where(self) -> str:
        latest = None if self.active is None else self.active.recorder.checkpoints.latest
        return "the beginning" if latest is None else f"the snapshot of step {latest.step}"

    def _failed(self, what: str, error: Exception | None) -> Exception:
        """Return the error that ends the run; before it began, the mistake is the user's."""
        if self.active is None and isinstance(error, UserError):
            return error
        if self.active is None or self.active.recorder.checkpoints.latest is None:
            return RunError(f"{what}; start it again")
        command = resume_command(self.active.run.directory.path)
        return RunError(f"{what}; its last checkpoint stays, continue with: {command}")


def await_verdict() -> None:
    """Wait until the cluster has declared dead each node that does not answer.

    Until then it would place a new stage on a dying node.
    """
    deadline = time.monotonic() + VERDICT_S
    while time.monotonic() < deadline:
        found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        alive = [node for node in found if node["Alive"]]
        if all(answers(n["NodeManagerAddress"], n["NodeManagerPort"], _CONNECT_S) for n in alive):
            return
        time.sleep(0.5)


def _shown(cuts: tuple[int, ...]) -> str:
    return ",".join(map(str, cuts)) or "none"
