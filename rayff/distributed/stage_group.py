"""The stage actors of a run: started together, without layers, and set up by a plan."""

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

from rayff.config.activity import activity
from rayff.config.kernels import Kernels
from rayff.config.text import plural
from rayff.config.train_config import Precision, TrainConfig
from rayff.distributed.actor_group import Capabilities
from rayff.distributed.all_reduce import connect, disconnect
from rayff.distributed.failure_policy import PATIENCE_S
from rayff.distributed.failures import StageFailedError, wait_for
from rayff.distributed.pipeline import RayPipeline
from rayff.distributed.placement import has_free_room, node_names, reserve
from rayff.distributed.planner import (
    all_reduce_backend,
    ask_capabilities,
    autotune_on,
    measure_costs,
)
from rayff.distributed.reading import SharedImages
from rayff.distributed.stage_actor import remote_stage
from rayff.distributed.transport import Transport, make_transport
from rayff.engine.learner import StageSpec, States
from rayff.engine.replicas import Replica
from rayff.engine.run import PreparedRun, Run
from rayff.partition.boundaries import Costs
from rayff.partition.plan import Plan, StageResources

_POLL_S = 1.0


@dataclass
class StageGroup:
    """Stage actors in the bundles of a placement group; an ActorGroup.

    Attributes:
        prepared: the run.
        resources: of each actor.
        placement_group: with a bundle for each actor, in order.
        actors: in the order of the bundles.
        transport: how messages travel.
        warn: called when the window shrinks.
    """

    prepared: PreparedRun
    resources: StageResources
    placement_group: PlacementGroup
    actors: list[ActorHandle[Any]]
    transport: Transport
    warn: Callable[[str], None]
    _connected: list[list[ActorHandle[Any]]] = field(default_factory=list)

    @property
    def num_actors(self) -> int:
        """Number of actors."""
        return len(self.actors)

    @property
    def node_names(self) -> tuple[str, ...]:
        """Node of each actor; empty on a single node."""
        return node_names(self.placement_group, self.num_actors)

    def free_room(self, more: int) -> bool:
        """Return whether the cluster can hold that many more actors now."""
        return has_free_room(
            self.placement_group, self.resources, more, self.prepared.config.placement
        )

    def capabilities(self) -> list[Capabilities]:
        """Return what the device of each actor can do."""
        return ask_capabilities(self.prepared, self.actors)

    def autotune(self, precision: Precision) -> tuple[Kernels, ...]:
        """Return the kernels that a timing on the first actor chooses."""
        return autotune_on(self.actors[0], self.prepared, precision)

    def measure(self, run: Run) -> Costs:
        """Time the layers on all actors at once."""
        return measure_costs(run, self.resources, self.actors)

    def set_up(
        self, run: Run, plan: Plan, images: SharedImages, states: States | None, window: int
    ) -> RayPipeline:
        """Give each stage its layers, and the first one the data.

        Args:
            run: what is trained.
            plan: for these actors, or for fewer: those left over are ended.
            images: for the first stage.
            states: the layers of a snapshot; None for initial ones.
            window: commands in flight at most.

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
        with activity(f"setting up {plural(plan.num_stages, 'stage')}"):
            wait_for(_set_up_calls(run, plan, stages, images, states), "was set up")
        return RayPipeline(stages, plan.stage_names, self.transport, window, self.warn)

    def leave_groups(self) -> None:
        """Let the replicas that are alive leave their process groups."""
        for stage in self._connected:
            disconnect(stage)
        self._connected = []


@contextmanager
def open_stage_group(
    prepared: PreparedRun,
    resources: StageResources,
    count: int,
    warn: Callable[[str], None],
    patience_s: float = PATIENCE_S,
) -> Iterator[StageGroup]:
    """Start the actors; whatever was started is gone at the end, also after a failed start.

    Raises:
        NoRoomError: the cluster does not give the resources in time.
        StageFailedError: an actor or its node died while it started.
    """
    config = prepared.config
    transport = make_transport(config, gpus=resources.gpus, warn=warn)
    names = [f"{prepared.directory.name}:{name}" for name in actor_names(config, count)]
    with reserve(resources, count, warn, patience_s, config.placement) as placement_group:
        actors = _start_actors(placement_group, resources, names, transport)
        try:
            with activity(f"starting {plural(count, 'stage')}"):
                _await_start(placement_group, actors)
                transport.connect(actors)
            group = StageGroup(prepared, resources, placement_group, actors, transport, warn)
            yield group
            group.leave_groups()
        finally:
            for actor in actors:
                ray.kill(actor)


def actor_names(config: TrainConfig, count: int) -> list[str]:
    """Return the names of the actors, as far as their stages are known before the plan."""
    if config.replicas == "auto":
        return [f"actor-{index}" for index in range(count)]
    return [
        f"stage-{stage}" if replicas == 1 else f"stage-{stage}-replica-{index}"
        for stage, replicas in enumerate(config.replica_counts or (1,) * count)
        for index in range(replicas)
    ]


def _start_actors(
    placement_group: PlacementGroup,
    resources: StageResources,
    names: Sequence[str],
    transport: Transport,
) -> list[ActorHandle[Any]]:
    """Start one actor in each bundle of the placement group."""
    return [
        remote_stage(
            resources,
            transport_options=transport.actor_options,
            name=name,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group, placement_group_bundle_index=index
            ),
        )
        for index, name in enumerate(names)
    ]


def _await_start(placement_group: PlacementGroup, actors: Sequence[ActorHandle[Any]]) -> None:
    """Wait until all actors have started.

    An actor whose node dies before would wait for another one, without an error and perhaps for
    ever.
    """
    ready = [actor.__ray_ready__.remote() for actor in actors]
    while len(ray.wait(ready, num_returns=len(ready), timeout=_POLL_S)[0]) < len(ready):
        state = placement_group_table(placement_group)["state"]
        if state != "CREATED":
            raise StageFailedError(
                "a stage that was started", f"its node is gone ({state.lower()})"
            )
    wait_for(ready, "was started")


def _set_up_calls(
    run: Run,
    plan: Plan,
    stages: list[list[ActorHandle[Any]]],
    images: SharedImages,
    states: States | None,
) -> list[Any]:
    calls = []
    parts = plan.architecture.stages(plan.cuts)
    for stage, part in zip(stages, parts, strict=True):
        own = {layer.index: states[layer.index] for layer in part.layers} if states else None
        for index, actor in enumerate(stage):
            spec = StageSpec(
                architecture=part,
                is_last=stage is stages[-1],
                config=run.resolved,
                replica=Replica(index=index, count=len(stage)),
            )
            data = images.reference if stage is stages[0] else None
            calls.append(actor.set_up.remote(spec, data, images.copied, own))
    return calls
