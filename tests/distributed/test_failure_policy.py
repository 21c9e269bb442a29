"""Failures and elasticity: each event has its action, and no sequence passes the limits."""

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


def events_after(action: object, wanted: int) -> st.SearchStrategy[Event]:
    """Return the events that may follow: the run looks for room, or starts, or trains."""
    at_snapshot = st.builds(AtSnapshot, st.integers(0, 9), st.booleans())
    training: st.SearchStrategy[Event] = st.sampled_from([StageFailed(), Finished()]) | at_snapshot
    if isinstance(action, Start):
        return training | st.just(NotReserved(action.actors))
    if isinstance(action, (Continue, Rebalance)):
        return training
    return st.builds(Capacity, st.integers(0, 9), st.just(wanted), st.floats(0, 2 * PATIENCE_S))


@given(
    data=st.data(),
    fewest=st.integers(1, 4),
    more=st.integers(0, 3),
    allowed=st.integers(-1, 3),
)
def test_no_sequence_of_events_passes_the_limits(
    data: st.DataObject, fewest: int, more: int, allowed: int
) -> None:
    run = RunState(fewest=fewest, most=fewest + more, max_failures=allowed)
    action: Any = Retry(run.most)
    wanted = run.most
    for _ in range(30):
        if isinstance(action, (End, Fail)):
            break
        event = data.draw(events_after(action, wanted))
        if isinstance(event, AtSnapshot) and isinstance(action, Start):
            run = dataclasses.replace(run, begun=True, actors=action.actors)
        run = dataclasses.replace(
            run,
            failures=run.failures + isinstance(event, StageFailed),
            stop_requested=data.draw(st.booleans(), "stop_requested"),
        )
        action = decide(event, run)
        if isinstance(action, Retry):
            wanted = action.most
        elif isinstance(action, (Start, Widen)):
            wanted = action.actors
        assert run.fewest <= wanted <= run.most
        assert action == Fail() or allowed < 0 or run.failures <= allowed
        assert action == End() or event != Finished()


@given(fewest=st.integers(1, 9), more=st.integers(0, 5))
def test_a_cluster_that_gives_nothing_ends_the_run(fewest: int, more: int) -> None:
    """Each attempt is for fewer actors than the one before, down to the fewest."""
    run = state(fewest=fewest, most=fewest + more)
    action: Any = Retry(run.most)
    starts: list[int] = []
    while isinstance(action, Retry):
        start = decide(Capacity(99, action.most), run)
        assert isinstance(start, Start)
        starts.append(start.actors)
        action = decide(NotReserved(start.actors), run)
    assert action == Fail()
    assert starts == list(range(run.most, fewest - 1, -1))
