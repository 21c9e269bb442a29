"""Progress of a run: where it stands and how fast it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from rayff.engine.commands import Evaluate, Report, Train
from rayff.runs.checkpoint import Progress
from rayff.runs.metrics import EpochRecord, best_record

HORIZON_S = 20.0
"""Seconds after which what was measured counts 1/e in a moving average."""
LOSS_HORIZON_S = 2.0
"""The same of losses, which change faster than the pace."""

Amount = NDArray[np.float64] | float


@dataclass
class MovingRatio:
    """What was measured by what it was measured over, the newer the more it counts."""

    horizon_s: float = HORIZON_S
    _amount: Amount = 0.0
    _base: Amount = 0.0

    def add(self, amount: Amount, base: Amount, seconds: float) -> None:
        """Add what was measured in the last `seconds`, such as images by seconds."""
        keep = math.exp(-seconds / self.horizon_s)
        self._amount = keep * self._amount + amount
        self._base = keep * self._base + base

    @property
    def value(self) -> NDArray[np.float64]:
        """The ratio; 0 before anything was measured."""
        zeros = np.zeros(np.shape(self._amount))
        return np.divide(self._amount, self._base, out=zeros, where=np.greater(self._base, 0))


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
    now: Callable[[], datetime] = datetime.now
    """The time of day."""
    records: list[EpochRecord] = field(default_factory=list)
    """Of the epochs that were completed while this was watching."""
    phase: str = "training"
    restarts: int = 0
    """Times that the run went on from a snapshot, after a failure or with another plan."""
    lr: float = 0.0
    """Of the newest batch and the first layer."""
    memory_bytes: Sequence[int] = ()
    """Of each stage's process; 0 for one that shares the process of the first stage."""

    def __post_init__(self) -> None:
        self.began_s = self.clock()
        self._begin(self.stage_names, self.start)

    def restart(self, stage_names: Sequence[str], progress: Progress) -> None:
        """Go on from there, with these stages; the epochs behind it are no longer complete."""
        self.restarts += 1
        self._begin(stage_names, progress)

    def _begin(self, stage_names: Sequence[str], progress: Progress) -> None:
        self.stage_names, self.start = stage_names, progress
        self.records = [record for record in self.records if record.epoch <= progress.epoch]
        self.epoch, self.images = progress.epoch, progress.images
        self.phase = "training"
        self._started_s = self._last_s = self.clock()
        self._pace, self._waited, self._busy = MovingRatio(), MovingRatio(), MovingRatio()
        self._losses = MovingRatio(LOSS_HORIZON_S)

    def add(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """Add the result of a chunk."""
        now = self.clock()
        seconds, self._last_s = now - self._last_s, now
        busy_s = np.array([report.busy_s for report in reports])
        stage_s = busy_s + [report.idle_s for report in reports]
        self._busy.add(busy_s, stage_s, seconds)
        self._waited.add(reports[0].waited_s, stage_s[0], seconds)
        self.memory_bytes = [report.memory_bytes for report in reports]
        if command.epoch != self.epoch:
            self.epoch, self.images = command.epoch, 0
        if isinstance(command, Train):
            self.phase = "training"
            images = reports[0].images
            self.images += images
            self._pace.add(images, seconds, seconds)
            self._losses.add(np.concatenate([r.loss_sums for r in reports]), images, seconds)
            self.lr = command.lrs[-1]
        else:
            self.phase = "validating" if command.split == "valid" else "testing"

    def finish(self, record: EpochRecord) -> None:
        """Add a complete epoch."""
        self.records.append(record)
        self.phase = "done" if record.epoch == self.epochs else "training"

    @property
    def epochs_done(self) -> int:
        """Epochs of the run that are complete."""
        return max(self.epoch, self.records[-1].epoch if self.records else 0)

    @property
    def images_per_s(self) -> float:
        """Training images a second, lately."""
        return float(self._pace.value)

    @property
    def layer_loss(self) -> list[float]:
        """Training loss of each layer, lately; empty before the first chunk."""
        return self._losses.value.tolist() if self._losses.value.ndim else []

    @property
    def best(self) -> EpochRecord | None:
        """The epoch with the highest validation accuracy, the first of equal ones."""
        return best_record(self.records) if self.records else None

    @property
    def stage_busy(self) -> NDArray[np.float64]:
        """Share of its own time that each stage computes, lately; (stages,)."""
        return np.broadcast_to(self._busy.value, len(self.stage_names))

    @property
    def data_wait(self) -> float:
        """Share of its own time that the first stage waits for images, lately."""
        return float(self._waited.value)

    @property
    def waits_s(self) -> float:
        """Seconds since the last result."""
        return self.clock() - self._last_s

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

    @property
    def end(self) -> datetime | None:
        """When the run will end at the pace so far; None before the first result."""
        return None if self.left_s is None else self.now() + timedelta(seconds=self.left_s)
