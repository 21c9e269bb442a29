"""Progress of a run: where it stands and how fast it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rayff.engine.commands import Evaluate, Report, Train
from rayff.runs.checkpoint import Progress
from rayff.runs.metrics import EpochRecord

HORIZON_S = 20.0
"""Seconds after which what was measured counts 1/e in a moving average."""


@dataclass
class MovingRate:
    """Amounts a second, the newer the more they count."""

    _amount: NDArray[np.float64] | float = 0.0
    _seconds: float = 0.0

    def add(self, amount: NDArray[np.float64] | float, seconds: float) -> None:
        """Add what happened in the last `seconds`."""
        keep = math.exp(-seconds / HORIZON_S)
        self._amount = keep * self._amount + amount
        self._seconds = keep * self._seconds + seconds

    def per_s(self) -> NDArray[np.float64] | float:
        """Return the average; 0 before anything was measured."""
        return self._amount / self._seconds if self._seconds > 0 else 0.0 * self._amount


@dataclass
class Tracker:
    """Progress of a run, updated by its callbacks in O(stages)."""

    epochs: int
    """Of the whole run."""
    num_train_images: int
    stage_names: Sequence[str]
    start: Progress
    """Where it began, or went on from a snapshot."""
    clock: Callable[[], float] = time.monotonic
    """Seconds from any point in time."""
    records: list[EpochRecord] = field(default_factory=list)
    """Of the epochs that were completed while this was watching."""
    phase: str = "training"

    def __post_init__(self) -> None:
        self.began_s = self.clock()
        self.restart(self.stage_names, self.start)

    def restart(self, stage_names: Sequence[str], progress: Progress) -> None:
        """Go on from there, with these stages; the epochs behind it are no longer complete."""
        self.stage_names, self.start = stage_names, progress
        self.records = [record for record in self.records if record.epoch <= progress.epoch]
        self.epoch, self.images = progress.epoch, progress.images
        self.phase = "training"
        self._started_s = self._last_s = self.clock()
        self._images, self._waited = MovingRate(), MovingRate()
        self._busy = MovingRate(np.zeros(len(stage_names)))

    def add(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """Add the result of a chunk."""
        now = self.clock()
        seconds, self._last_s = now - self._last_s, now
        self._busy.add(np.array([report.busy_s for report in reports]), seconds)
        self._waited.add(reports[0].waited_s, seconds)
        if command.epoch != self.epoch:
            self.epoch, self.images = command.epoch, 0
        if isinstance(command, Train):
            self.phase = "training"
            self.images += reports[0].images
            self._images.add(reports[0].images, seconds)
        else:
            self.phase = "validating" if command.split == "valid" else "testing"

    def finish(self, record: EpochRecord) -> None:
        """Add a complete epoch."""
        self.records.append(record)
        self.phase = "done" if record.epoch == self.epochs else "training"

    @property
    def epochs_done(self) -> int:
        """Epochs of the run that are complete."""
        return self.records[-1].epoch if self.records else self.start.epoch

    @property
    def images_per_s(self) -> float:
        """Training images a second, lately."""
        return float(self._images.per_s())

    @property
    def stage_busy(self) -> NDArray[np.float64]:
        """Share of the time that each stage computes, lately; (stages,)."""
        busy: NDArray[np.float64] = np.minimum(self._busy.per_s(), 1.0)
        return busy

    @property
    def data_wait(self) -> float:
        """Share of the time that the first stage waits for images, lately."""
        return min(1.0, float(self._waited.per_s()))

    @property
    def elapsed_s(self) -> float:
        """Seconds since this process began."""
        return self.clock() - self.began_s

    @property
    def left_s(self) -> float | None:
        """Seconds to the end of the run at the pace so far; None before the first result."""
        total = self.epochs * self.num_train_images
        begun = self.start.epoch * self.num_train_images + self.start.images
        reached = self.epoch * self.num_train_images + self.images
        if reached == begun:
            return None
        return (total - reached) * (self._last_s - self._started_s) / (reached - begun)
