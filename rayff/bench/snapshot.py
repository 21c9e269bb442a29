"""The command `rayff bench snapshot`: Time a pipeline with and without a snapshot.

It is copied aside, sent to the driver and written to disk while training goes on.

Examples:
  rayff bench snapshot --arch tinycnn --batch-size 16 --repeats 1
  rayff bench snapshot --arch resnet --save bench-snapshot.json
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from rayff.bench.command import BenchCommand, NetworkOptions, benchmark, train_config
from rayff.bench.results import Results
from rayff.bench.workload import completed, random_run
from rayff.engine.callbacks import Callback
from rayff.engine.commands import Evaluate, Report, Train


@dataclass(frozen=True, kw_only=True)
class SnapshotCommand(NetworkOptions, BenchCommand):
    """The options."""

    stages: int = 2
    """Number of stages, one CPU each."""
    steps: int = 4
    """Batches of a stretch, with a snapshot before it or without."""
    epoch_images: int = 45_000
    """Images of an epoch with one snapshot; CIFAR-10's."""
    repeats: int = 3
    """Pairs of stretches, of which the median is reported."""


class StretchTimer(Callback):
    """Records when the last batch of each stretch, and each checkpoint, is done."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.ends_s: list[float] = []
        self.written_s: list[float] = []
        """From the end of a stretch to the checkpoint behind it."""
        self.checkpoint_bytes = 0

    def on_chunk_end(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        """Add the end of a stretch."""
        if isinstance(command, Train) and (command.step + 1) % self.steps == 0:
            self.ends_s.append(time.perf_counter())

    def on_checkpoint(self, path: Path) -> None:
        """Add a checkpoint; there is one behind each second stretch, and behind the last."""
        stretch = min(2 * len(self.written_s) + 1, len(self.ends_s) - 1)
        self.written_s.append(time.perf_counter() - self.ends_s[stretch])
        layers = path.glob("layer-*.safetensors")
        self.checkpoint_bytes = sum(file.stat().st_size for file in layers)


def measure(command: SnapshotCommand, results: Results) -> None:
    """Fill in the table and figures.

    A stretch is an epoch, evaluated on two images; there is a snapshot after each second one. The
    first stretch warms up, the following ones have no snapshot before them and one, in turns.
    """
    from rayff.distributed.controller import train_on_cluster

    timer = StretchTimer(command.steps)
    with TemporaryDirectory(prefix="rayff-snapshot-") as folder:
        config = train_config(
            command,
            cpus_per_stage=1,
            chunk=1,
            epochs=1 + 2 * command.repeats,
            checkpoint_every=2,
            logger="none",
            run_dir=f"{folder}/run",
        )
        completed(train_on_cluster(random_run(config, command.steps), [timer]))
    stretches = np.diff(timer.ends_s)
    without, with_one = stretches[0::2].tolist(), stretches[1::2].tolist()
    costs = [b - a for a, b in zip(without, with_one, strict=True)]
    written = timer.written_s[: command.repeats]
    epoch_s = median(without) / command.steps * command.epoch_images / command.batch_size
    share = median(costs) / epoch_s
    times = {
        "without_s": without,
        "with_s": with_one,
        "costs_s": costs,
        "written_s": written,
    }
    results.table(
        f"{command.arch}, batch {command.batch_size}, {command.stages} stages: stretches of "
        f"{command.steps} batches without a snapshot and with one, what one costs, and until its "
        "checkpoint is on disk",
        [times],
        " ".join(times),
    )
    results.notes.append(
        f"{timer.checkpoint_bytes / 2**20:.0f} MiB; an epoch of {command.epoch_images:,} images "
        f"takes {epoch_s:.0f} s at this pace, of which one snapshot is {share:.2%}"
    )
    results.figures = {
        **times,
        "bytes": timer.checkpoint_bytes,
        "epoch_s": epoch_s,
        "share_of_epoch": share,
    }


main = benchmark(SnapshotCommand, measure)
