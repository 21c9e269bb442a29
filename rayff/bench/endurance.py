"""The command `rayff bench endurance`: Train for a while and sample the memory of all processes.

The memory of driver and stages is their unique set; the pages of the object store, which its
readers map, are counted once, by Ray.

Examples:
  rayff bench endurance --minutes 2
  rayff bench endurance --minutes 60 --save bench-endurance.json
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

from rayff.bench.command import BenchCommand, benchmark, train_config
from rayff.bench.results import Results
from rayff.config.errors import UserError
from rayff.engine.callbacks import Callback
from rayff.engine.commands import Evaluate, Report, Train
from rayff.engine.run import Run
from rayff.partition.plan import Plan
from rayff.trainer import Trainer

PARTS = 10
"""Of the time; the first one is the warm-up."""
MEMORY = ("driver_bytes", "stages_bytes", "store_bytes")


@dataclass(frozen=True, kw_only=True)
class EnduranceCommand(BenchCommand):
    """The options."""

    minutes: float = 60.0
    """Minutes of training."""
    every_s: float = 10.0
    """Seconds between two samples."""
    arch: str = "tinycnn"
    """Network: {architectures}, or package.module:function."""
    width: int | None = None
    """Channels of the first layer. Default: the architecture's own."""
    task: str = "digits"
    """Data: {tasks}, a folder or URI of images, or package.module:function."""
    data_dir: str | None = None
    """Folder that holds the task's data."""
    stages: int = 2
    """Number of stages."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.minutes > 0 and self.every_s > 0):
            raise UserError("--minutes and --every-s must be more than 0")


class MemorySampler(Callback):
    """Samples memory between two chunks, and requests the stop when the time is over.

    Args:
        seconds: of the whole training.
        every_s: seconds between two samples.

    Attributes:
        samples: bytes of driver, stages and object store, with the seconds since the start.
    """

    def __init__(self, seconds: float, every_s: float) -> None:
        self.seconds = seconds
        self.every_s = every_s
        self.began_s = 0.0
        self.samples: list[dict[str, float]] = []

    def on_start(self, run: Run, plan: Plan) -> None:
        """Start the clock."""
        self.began_s = time.monotonic()

    def on_chunk_end(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """Add a sample where one is due."""
        from rayff.distributed.pipeline import store_used

        at_s = time.monotonic() - self.began_s
        if at_s >= (len(self.samples) + 1) * self.every_s:
            found = psutil.Process().memory_full_info().uss, stages_bytes(), store_used()
            self.samples.append({"at_s": at_s, **dict(zip(MEMORY, found, strict=True))})
        if at_s >= self.seconds:
            self.request_stop()


def stages_bytes() -> int:
    """Return the memory of the stages of this process's own Ray instance."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            if "StageActor" in " ".join(process.cmdline()):
                total += process.memory_full_info().uss
        except psutil.Error:
            continue
    return total


def measure(command: EnduranceCommand, results: Results) -> None:
    """Fill in the table of memory over time, and its growth after the warm-up."""
    sampler = MemorySampler(60 * command.minutes, command.every_s)
    with TemporaryDirectory(prefix="rayff-endurance-") as folder:
        config = train_config(command, epochs=10**6, run_dir=f"{folder}/run")
        epochs = len(Trainer(config, [sampler], quiet=True).fit().metrics)
    samples = sampler.samples
    if len(samples) < 3:
        raise UserError("too few samples: choose more --minutes, or a smaller --every-s")
    rows: list[dict[str, Any]] = []
    for part in np.array_split(np.arange(len(samples)), min(PARTS, len(samples))):
        inside = [samples[index] for index in part]
        row = {name: median(each[name] for each in inside) for name in MEMORY}
        rows.append({"until_s": inside[-1]["at_s"], **row})
    results.table(
        f"{command.arch} on {Path(command.task).name}, {command.stages} stages, {epochs} epochs, "
        "median of each part",
        rows,
        " ".join(rows[0]),
    )
    growth = {
        name.removesuffix("_bytes"): (rows[-1][name] - rows[1][name]) / 2**20 for name in MEMORY
    }
    results.notes.append(
        "growth from the second part to the last: "
        + ", ".join(f"{name} {mib:+.1f} MiB" for name, mib in growth.items())
    )
    results.figures = {"epochs": epochs, "growth_mib": growth, "samples": samples}


main = benchmark(EnduranceCommand, measure)
