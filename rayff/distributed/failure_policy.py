"""The policy for failures and for clusters that shrink or grow: a pure function."""

from __future__ import annotations

from dataclasses import dataclass

PATIENCE_S = 300.0
"""How long a run waits for resources that the cluster has, or had."""
NARROWER_AFTER_S = 20.0
"""How long a run that may have fewer actors waits for the resources of more."""
POLL_S = 5.0
"""Seconds between two checks of the cluster."""


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run that the policy depends on."""

    fewest: int
    """Actors that the run needs at least."""
    most: int
    """Actors that it can use at most."""
    actors: int = 0
    """Actors at work; 0 before the first start."""
    failures: int = 0
    """Failed stages and nodes so far."""
    max_failures: int = 3
    """Failures that are allowed; -1 for any number."""
    begun: bool = False
    """Whether the run directory exists: before, nothing is lost by giving up."""
    stop_requested: bool = False

    @property
    def may_widen(self) -> bool:
        """Whether it could use more actors than are at work."""
        return self.fewest < self.most and self.actors < self.most


@dataclass(frozen=True)
class Capacity:
    """The cluster can hold so many actors; the run would start `wanted` of them at most."""

    actors: int
    wanted: int
    waited_s: float = 0.0


@dataclass(frozen=True)
class NotReserved:
    """The cluster did not give the resources of so many actors in time."""

    actors: int


@dataclass(frozen=True)
class StageFailed:
    """A stage or its node died."""


@dataclass(frozen=True)
class AtSnapshot:
    """All layers are at the same batch, and a snapshot of them is kept."""

    free: int = 0
    """Further actors that the cluster can hold now."""
    rebalance: bool = False
    """Whether other boundaries would be worth it."""


@dataclass(frozen=True)
class Finished:
    """The schedule is complete, or was stopped behind a snapshot."""


Event = Capacity | NotReserved | StageFailed | AtSnapshot | Finished


@dataclass(frozen=True)
class Start:
    """Start so many actors; wait so long for their resources."""

    actors: int
    patience_s: float


@dataclass(frozen=True)
class Wait:
    """Look at the cluster again after a while."""

    seconds: float


@dataclass(frozen=True)
class Retry:
    """Look for actors again, for so many at most; after a failure, once dead nodes are known."""

    most: int
    after_failure: bool = False


@dataclass(frozen=True)
class Continue:
    """Train on with the same actors and boundaries."""


@dataclass(frozen=True)
class Widen:
    """Go on from the snapshot with so many actors."""

    actors: int


@dataclass(frozen=True)
class Rebalance:
    """Go on from the snapshot with the same actors and other boundaries."""


@dataclass(frozen=True)
class End:
    """The run is over, and its last snapshot is kept."""


@dataclass(frozen=True)
class Fail:
    """The run cannot go on."""


Action = Start | Wait | Retry | Continue | Widen | Rebalance | End | Fail


def decide(event: Event, state: RunState) -> Action:
    """Return what to do about an event; `state` is that after it."""
    match event:
        case Finished():
            return End()
        case Capacity(actors, wanted, waited_s):
            if actors >= state.fewest:
                count = min(wanted, actors)
                narrower = state.fewest < count
                return Start(count, NARROWER_AFTER_S if narrower else PATIENCE_S)
            if state.begun and state.stop_requested:
                return End()
            if not state.begun or waited_s > PATIENCE_S:
                return Fail()
            return Wait(POLL_S)
        case NotReserved(actors):
            if actors == state.fewest or not state.begun:
                return Fail()
            return Retry(actors - 1)
        case StageFailed():
            if 0 <= state.max_failures < state.failures:
                return Fail()
            if state.begun and state.stop_requested:
                return End()
            return Retry(state.most, after_failure=True)
        case AtSnapshot(free, rebalance):
            if state.may_widen and free > 0:
                return Widen(min(state.most, state.actors + free))
            return Rebalance() if rebalance else Continue()
