"""What a run does about failures and a cluster that changes: tables, and any sequence of events."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayff.distributed.failure_policy import (
    NARROWER_AFTER_S,
    PATIENCE_S,
    POLL_S,
    AtSnapshot,
    Capacity,
    Continue,
    End,
    Event,
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

LATE = PATIENCE_S + 1


def state(**changes: Any) -> RunState:
    """Return the state of a run of 2 to 4 actors that is under way with 3."""
    usual: dict[str, Any] = {"fewest": 2, "most": 4, "actors": 3, "begun": True}
    return RunState(**{**usual, **changes})


NEW = {"begun": False, "actors": 0}
STOP = {"stop_requested": True}
FIXED = {"fewest": 3, "most": 3}


@pytest.mark.parametrize(
    ("event", "changes", "action"),
    [
        # room for what is wanted, for fewer, for more, and for the fewest only
        (Capacity(4, wanted=4), NEW, Start(4, NARROWER_AFTER_S)),
        (Capacity(3, wanted=4), NEW, Start(3, NARROWER_AFTER_S)),
        (Capacity(9, wanted=3), {}, Start(3, NARROWER_AFTER_S)),
        (Capacity(2, wanted=4), {}, Start(2, PATIENCE_S)),
        (Capacity(9, wanted=3), FIXED, Start(3, PATIENCE_S)),
        (Capacity(9, wanted=4), STOP, Start(4, NARROWER_AFTER_S)),
        # no room: a run that has not begun loses nothing
        (Capacity(1, wanted=4), NEW, Fail()),
        (Capacity(1, wanted=4), {**NEW, **STOP}, Fail()),
        (Capacity(1, wanted=4), {}, Wait(POLL_S)),
        (Capacity(1, wanted=4, waited_s=PATIENCE_S), {}, Wait(POLL_S)),
        (Capacity(1, wanted=4, waited_s=LATE), {}, Fail()),
        (Capacity(1, wanted=4), STOP, End()),
        (Capacity(1, wanted=4, waited_s=LATE), STOP, End()),
        (Capacity(2, wanted=3), FIXED, Wait(POLL_S)),
        # other work holds the resources
        (NotReserved(4), {}, Retry(3)),
        (NotReserved(2), {}, Fail()),
        (NotReserved(4), NEW, Fail()),
        # a process or node is gone
        (StageFailed(), {"failures": 1}, Retry(4, after_failure=True)),
        (StageFailed(), {**NEW, "failures": 1}, Retry(4, after_failure=True)),
        (StageFailed(), {"failures": 3}, Retry(4, after_failure=True)),
        (StageFailed(), {"failures": 4}, Fail()),
        (StageFailed(), {"failures": 4, **STOP}, Fail()),
        (StageFailed(), {"failures": 1, "max_failures": 0}, Fail()),
        (StageFailed(), {"failures": 99, "max_failures": -1}, Retry(4, after_failure=True)),
        (StageFailed(), {"failures": 1, **STOP}, End()),
        (StageFailed(), {**NEW, "failures": 1, **STOP}, Retry(4, after_failure=True)),
        # at a snapshot more actors come before other boundaries
        (AtSnapshot(), {}, Continue()),
        (AtSnapshot(free=1), {}, Widen(4)),
        (AtSnapshot(free=5), {"actors": 2}, Widen(4)),
        (AtSnapshot(free=1), {"actors": 2}, Widen(3)),
        (AtSnapshot(free=1, rebalance=True), {}, Widen(4)),
        (AtSnapshot(free=1, rebalance=True), {"actors": 4}, Rebalance()),
        (AtSnapshot(free=1), {"actors": 4}, Continue()),
        (AtSnapshot(free=1), FIXED, Continue()),
        (AtSnapshot(free=1), {**FIXED, "actors": 2}, Continue()),  # --replicas auto left one out
        (AtSnapshot(rebalance=True), {}, Rebalance()),
        (Finished(), {}, End()),
        (Finished(), {"failures": 9, **STOP}, End()),
    ],
    ids=str,
)
def test_each_event_has_its_action(event: Event, changes: dict[str, Any], action: object) -> None:
    assert decide(event, state(**changes)) == action


class SimulatedRun:
    """A run that acts on every decision as the controller does.

    Attributes:
        state: where it stands.
        wanted: actors that it looks for.
        reserving: actors whose resources it waits for; 0 while it looks for room or trains.
        over: whether it has ended.
        starts: how many actors it started each time.
    """

    def __init__(self, state: RunState) -> None:
        self.state = state
        self.wanted = state.most
        self.reserving = 0
        self.training = False
        self.over = False
        self.starts: list[int] = []

    def events(self) -> st.SearchStrategy[Event]:
        """Return the events that may come now."""
        if self.training:
            at_snapshot = st.builds(AtSnapshot, st.integers(0, 9), st.booleans())
            return st.just(StageFailed()) | at_snapshot | st.just(Finished())
        if self.reserving:
            return st.sampled_from([NotReserved(self.reserving), StageFailed()])
        waited_s = st.floats(0, 2 * PATIENCE_S)
        return st.builds(Capacity, st.integers(0, 9), st.just(self.wanted), waited_s)

    def act(self, event: Event) -> None:
        """Take the decision about an event."""
        if isinstance(event, StageFailed):
            self.state = dataclasses.replace(self.state, failures=self.state.failures + 1)
        action = decide(event, self.state)
        if isinstance(action, Start):
            self.starts.append(action.actors)
            self.reserving = action.actors
        elif isinstance(action, (Retry, Widen)):
            self.wanted = action.most if isinstance(action, Retry) else action.actors
            self.reserving, self.training = 0, False
        self.over = isinstance(action, (End, Fail))

    def reserve(self) -> None:
        """Get the resources that it waits for, and train."""
        self.state = dataclasses.replace(self.state, begun=True, actors=self.reserving)
        self.reserving, self.training = 0, True


@given(data=st.data())
def test_no_sequence_of_events_passes_the_limits(data: st.DataObject) -> None:
    fewest = data.draw(st.integers(1, 4), "fewest")
    most = data.draw(st.integers(fewest, 6), "most")
    allowed = data.draw(st.integers(-1, 3), "max_failures")
    run = SimulatedRun(RunState(fewest=fewest, most=most, max_failures=allowed))
    for _ in range(30):
        if run.over:
            break
        stop = data.draw(st.booleans(), "stop_requested")
        run.state = dataclasses.replace(run.state, stop_requested=stop)
        if run.reserving and data.draw(st.booleans(), "reserved"):
            run.reserve()
        before = run.starts.copy()
        event = data.draw(run.events())
        run.act(event)
        assert all(fewest <= count <= most for count in run.starts)
        assert fewest <= run.wanted <= most
        if 0 <= allowed < run.state.failures:
            assert run.over
            assert run.starts == before, "it started again after one failure too many"
        if isinstance(event, Finished):
            assert run.over


@given(most=st.integers(1, 9), data=st.data())
def test_a_cluster_that_gives_nothing_ends_the_run(most: int, data: st.DataObject) -> None:
    """Each attempt wants fewer actors than the one before, down to the fewest."""
    fewest = data.draw(st.integers(1, most))
    run = SimulatedRun(state(fewest=fewest, most=most))
    while not run.over:
        run.act(Capacity(9, run.wanted))
        run.act(NotReserved(run.reserving))
    assert run.starts == list(range(most, fewest - 1, -1))
