"""The actors of a run: started together, without layers, and given their slices by a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util import placement_group_table
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayff.config.train_config import Placement, TrainConfig
from rayff.distributed.failures import StageFailedError, wait_for
from rayff.distributed.pipeline import RayPipeline
from rayff.distributed.placement import RESERVE_TIMEOUT_S, node_names, reserve, room_beside
from rayff.distributed.planner import all_reduce_backend, measure
from rayff.distributed.replica_group import connect, disconnect
from rayff.distributed.stage_actor import remote_stage
from rayff.distributed.transport import Transport, make_transport
from rayff.engine.learner import StageSpec, States
from rayff.engine.preparation import Prepared
from rayff.engine.replicas import Replica
from rayff.models.architecture import Architecture
from rayff.partition.plan import Measured, Plan, StageResources

_STARTING_S = 1.0


@dataclass
class StageGroup:
    """Actors in their bundles; they can be set up again by another plan of as many actors."""

    resources: StageResources
    """Of each."""
    group: PlacementGroup
    """With a bundle for each, in order."""
    actors: list[ActorHandle[Any]]
    transport: Transport
    _connected: list[list[ActorHandle[Any]]] = field(default_factory=list)

    @property
    def num_actors(self) -> int:
        """Number of actors."""
        return len(self.actors)

    @property
    def node_names(self) -> tuple[str, ...]:
        """Where each is; nothing where there is one node only."""
        return node_names(self.group, self.num_actors)

    def has_room_beside(self, more: int, placement: Placement) -> bool:
        """Return whether that many more would find room now."""
        return room_beside(self.group, self.resources, more, placement)

    def measure(
        self, run: TrainConfig, network: Architecture, notify: Callable[[str], None]
    ) -> Measured:
        """Time the layers on all actors at once."""
        return measure(run, network, self.resources, self.actors, notify)

    def set_up(
        self,
        prepared: Prepared,
        plan: Plan,
        states: States | None,
        *,
        window: int,
        warn: Callable[[str], None] = lambda message: None,
    ) -> RayPipeline:
        """Give each stage its slice, the first one the data too, and the layers of a snapshot.

        Args:
            prepared: the run.
            plan: for these actors, or for fewer: those left over are ended.
            states: safetensors bytes by layer; None for fresh layers.
            window: commands in flight at most.
            warn: is told when the window shrinks.

        Raises:
            StageFailedError: a stage died.
        """
        self.leave_groups()
        for actor in self.actors[plan.num_actors :]:  # they would make nothing faster
            ray.kill(actor)
        self.actors = self.actors[: plan.num_actors]
        stages = plan.by_stage(self.actors)
        self._connected = [stage for stage in stages if len(stage) > 1]
        for stage in self._connected:
            connect(stage, all_reduce_backend(self.resources))
        wait_for(_set_up_calls(prepared, plan, stages, states), "was set up")
        return RayPipeline(stages, plan.stage_names, self.transport, window, warn)

    def leave_groups(self) -> None:
        """Let the replicas leave their groups, those that are still there."""
        for stage in self._connected:
            disconnect(stage)
        self._connected = []


@contextmanager
def open_stage_group(
    prepared: Prepared,
    each: StageResources,
    count: int,
    notify: Callable[[str], None],
    patience_s: float = RESERVE_TIMEOUT_S,
) -> Iterator[StageGroup]:
    """Start the actors; whatever was started is gone at the end, also after a failed start.

    Raises:
        NoRoomError: the cluster does not give the resources in time.
        StageFailedError: an actor or its node died while it started.
    """
    run = prepared.run
    transport = make_transport(run.transport)
    names = [f"{prepared.directory.name}:{name}" for name in actor_names(run, count)]
    with reserve(each, count, notify, patience_s, run.placement) as group:
        actors = start_actors(group, each, names, transport)
        try:
            _await_start(group, actors)
            transport.connect(actors)
            stage_group = StageGroup(
                resources=each, group=group, actors=actors, transport=transport
            )
            yield stage_group
            stage_group.leave_groups()
        finally:
            for actor in actors:
                ray.kill(actor)


def actor_names(run: TrainConfig, count: int) -> list[str]:
    """Return names that tell what an actor is, as far as it is known before the plan."""
    if run.replicas == "auto":
        return [f"actor-{index}" for index in range(count)]
    return [
        f"stage-{stage}" if replicas == 1 else f"stage-{stage}-replica-{index}"
        for stage, replicas in enumerate(run.replica_counts or (1,) * count)
        for index in range(replicas)
    ]


def start_actors(
    group: PlacementGroup, each: StageResources, names: Sequence[str], transport: Transport
) -> list[ActorHandle[Any]]:
    """Start one actor in each bundle of the group."""
    device = "cuda" if each.gpus else "cpu"
    return [
        remote_stage(
            transport.actor_options,
            name=name,
            num_cpus=each.cpus,
            num_gpus=each.gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=index
            ),
        ).remote(each.threads, device)
        for index, name in enumerate(names)
    ]


def _await_start(group: PlacementGroup, actors: Sequence[ActorHandle[Any]]) -> None:
    """Wait until all actors are there.

    An actor whose node dies before it has started would wait for another one, without an error
    and perhaps for ever.
    """
    ready = [actor.__ray_ready__.remote() for actor in actors]
    while len(ray.wait(ready, num_returns=len(ready), timeout=_STARTING_S)[0]) < len(ready):
        state = placement_group_table(group)["state"]
        if state != "CREATED":
            raise StageFailedError(
                "a stage that was started", f"its node is gone ({state.lower()})"
            )
    wait_for(ready, "was started")


def _set_up_calls(
    prepared: Prepared, plan: Plan, stages: list[list[ActorHandle[Any]]], states: States | None
) -> list[Any]:
    data = ray.put(prepared.splits)
    calls = []
    parts = plan.architecture.stages(plan.cuts)
    rest = iter(plan.kernels)
    for stage, part in zip(stages, parts, strict=True):
        kernels = tuple(next(rest) for _ in part.layers)
        own = {layer.index: states[layer.index] for layer in part.layers} if states else None
        for index, actor in enumerate(stage):
            spec = StageSpec(
                architecture=part,
                is_last=stage is stages[-1],
                recipe=prepared.recipe,
                seed=prepared.run.seed,
                precision=plan.precision,
                rule=prepared.run.rule,
                kernels=kernels,
                replica=Replica(index=index, count=len(stage)),
            )
            calls.append(actor.set_up.remote(spec, data if stage is stages[0] else None, own))
    return calls
