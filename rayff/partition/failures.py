"""Time lost to failures at a given rate: closed formulas.

Failures come at random, independently of each other (a Poisson process). Training is a sequence
of segments: `interval_s` of work and a snapshot. A failure at any moment costs what was done of
the segment and a restart, which may fail as well. J. T. Daly, A higher order estimate of the
optimum checkpoint interval for restart dumps, 2006, equation 13 without the part that is saved
by a last checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Failures:
    """How often devices fail, and what a run does about it."""

    rate_per_s: float
    """Failures a second of all devices that a run uses."""
    snapshot_s: float
    """Seconds that a snapshot costs."""
    restart_s: float
    """Seconds from a failure until the run trains again."""

    def segment_s(self, interval_s: float) -> float:
        """Return the expected seconds of a segment with all its failures; infinite at most.

        (e^(rate (interval + snapshot)) - 1) e^(rate restart) / rate.
        """
        rate, whole_s = self.rate_per_s, interval_s + self.snapshot_s
        if rate == 0:
            return whole_s
        try:
            return math.expm1(rate * whole_s) * math.exp(rate * self.restart_s) / rate
        except OverflowError:
            return math.inf

    def lost(self, interval_s: float) -> float:
        """Return the expected share of the time that is no progress, snapshots included."""
        return 1 - interval_s / self.segment_s(interval_s)

    @property
    def best_interval_s(self) -> float:
        """The interval between snapshots that loses least; infinite without failures.

        Where (1 - x) e^(x + rate snapshot) = 1, with x = rate interval: by bisection, as the left
        side falls with x. For few failures it is Young's sqrt(2 snapshot / rate).
        """
        if self.rate_per_s == 0:
            return math.inf
        low, high = 0.0, 1.0
        while low < (x := (low + high) / 2) < high:
            if math.log1p(-x) + x + self.rate_per_s * self.snapshot_s > 0:
                low = x
            else:
                high = x
        return low / self.rate_per_s
