"""Time lost to failures: the formula against a simulation of random failures."""

import math
import random

import pytest

from rayff.partition.failures import Failures


def simulated_s(failures: Failures, interval_s: float, segments: int) -> float:
    """Return the mean seconds of a segment, played with random failures."""
    draw = random.Random(0)

    def until_done(work_s: float) -> float:
        """Return the seconds of an uninterrupted stretch; a failure starts it again."""
        total_s = 0.0
        while True:
            failure_s = draw.expovariate(failures.rate_per_s)
            if failure_s >= work_s:
                return total_s + work_s
            total_s += failure_s
            if work_s != failures.restart_s:  # a failed restart is a restart that begins again
                total_s += until_done(failures.restart_s)

    whole_s = interval_s + failures.snapshot_s
    return sum(until_done(whole_s) for _ in range(segments)) / segments


@pytest.mark.parametrize(
    ("mtbf_s", "interval_s"), [(5000.0, 300.0), (400.0, 300.0), (100.0, 90.0)]
)
def test_the_formula_is_the_mean_of_random_failures(mtbf_s: float, interval_s: float):
    failures = Failures(rate_per_s=1 / mtbf_s, snapshot_s=5.0, restart_s=40.0)
    expected = simulated_s(failures, interval_s, 20_000)
    assert failures.segment_s(interval_s) == pytest.approx(expected, rel=0.03)


def test_few_failures_cost_half_an_interval_and_a_restart():
    failures = Failures(rate_per_s=1e-6, snapshot_s=2.0, restart_s=12.0)
    assert failures.lost(600.0) == pytest.approx(2 / 602 + 1e-6 * (300 + 12), rel=0.01)


@pytest.mark.parametrize("mtbf_s", [1e6, 1e3, 30.0])
def test_no_other_interval_loses_less_than_the_best(mtbf_s: float):
    failures = Failures(rate_per_s=1 / mtbf_s, snapshot_s=4.0, restart_s=10.0)
    best_s = failures.best_interval_s
    assert all(failures.lost(best_s) < failures.lost(best_s * each) for each in (0.9, 1.1))
    if mtbf_s == 1e6:  # Young, 1974
        assert best_s == pytest.approx(math.sqrt(2 * 4.0 * mtbf_s), rel=0.01)


def test_without_failures_only_snapshots_cost():
    never = Failures(rate_per_s=0.0, snapshot_s=1.0, restart_s=10.0)
    assert never.lost(9.0) == pytest.approx(0.1)
    assert never.best_interval_s == math.inf


def test_failures_that_leave_no_time_lose_all_of_it():
    assert Failures(rate_per_s=1.0, snapshot_s=1.0, restart_s=9.0).lost(1e4) == 1.0
    always = Failures(rate_per_s=1e9, snapshot_s=2.0, restart_s=9.0)
    assert always.best_interval_s == pytest.approx(1e-9)
    assert always.lost(always.best_interval_s) == 1.0
