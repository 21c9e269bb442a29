"""The interface of actor groups: actors that are started together and set up by a plan."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from rayff.config.kernels import Kernels
from rayff.config.recipe import Method
from rayff.config.train_config import Precision
from rayff.distributed.reading import SharedImages
from rayff.engine.learner import States
from rayff.engine.pipeline import Pipeline
from rayff.engine.run import PreparedRun, Run
from rayff.kernels.device_class import least_able
from rayff.partition.boundaries import Costs
from rayff.partition.plan import Plan, StageResources

GROUPS: dict[Method, str] = {
    "ff": "rayff.distributed.stage_group:open_stage_group",
    "bp": "rayff.baselines.torch_trainer:open_worker_group",
    "bp-deepsup": "rayff.baselines.torch_trainer:open_worker_group",
}
"""Import path of what starts the actors of each method."""


@dataclass(frozen=True)
class Capabilities:
    """What a device can do."""

    device_class: str
    """See rayff.kernels.device_class."""
    precision: Precision
    """The default."""
    missing: str | None = None
    """Why the compiled kernels are missing, in a clause; None where they are installed."""
    name: str = ""
    """Of the device's model."""

    @classmethod
    def common(cls, found: Sequence[Capabilities]) -> Capabilities:
        """Return the capabilities that all of these devices have."""
        precisions = {each.precision for each in found}
        return cls(
            device_class=least_able([each.device_class for each in found]),
            precision="fp32" if "fp32" in precisions else "bf16",
            missing=next((each.missing for each in found if each.missing), None),
        )


class ClusterPipeline(Pipeline, Protocol):
    """A pipeline that says how much is in flight."""

    window: int

    @property
    def in_flight(self) -> int:
        """Commands between the first stage and the results."""
        ...


class ActorGroup(Protocol):
    """Actors that were started; they can be set up several times."""

    @property
    def num_actors(self) -> int:
        """Number of actors."""
        ...

    @property
    def node_names(self) -> tuple[str, ...]:
        """Node of each actor; empty on a single node, or where it is not known."""
        ...

    def free_room(self, more: int) -> bool:
        """Return whether the cluster can hold that many more actors now."""
        ...

    def capabilities(self) -> list[Capabilities]:
        """Return the capabilities of each actor's device."""
        ...

    def autotune(self, precision: Precision) -> tuple[Kernels, ...]:
        """Return the kernels that a timing on the first actor chooses."""
        ...

    def measure(self, run: Run) -> Costs:
        """Time the layers on all actors at once: in training they share caches and memory too."""
        ...

    def set_up(
        self, run: Run, plan: Plan, images: SharedImages, states: States | None, window: int
    ) -> ClusterPipeline:
        """Give each stage its layers, from a snapshot if any, and the first one the data.

        Raises:
            StageFailedError: a stage died.
        """
        ...


OpenGroup = Callable[
    [PreparedRun, StageResources, int, Callable[[str], None], float],
    AbstractContextManager[ActorGroup],
]
"""Starts so many actors of a run, each with such resources; they are gone at the end. The others
are a function that is called with warnings, and the seconds to wait for the resources."""


def group_opener(method: Method) -> OpenGroup:
    """Return what starts the actors of a method."""
    opener: Any = pkgutil.resolve_name(GROUPS[method])
    found: OpenGroup = opener
    return found
