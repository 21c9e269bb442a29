"""python -m rayff.bench snapshot: what a snapshot costs a training that does not stop for it."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rayff.bench.outcome import Outcome, at_least_one, check_save, median, spread
from rayff.bench.scaling import prepared
from rayff.cli import parse
from rayff.config.train_config import TrainConfig
from rayff.engine.commands import Command, Snapshot, Train
from rayff.runs.checkpoint import Checkpoint, Progress
from rayff.runs.checkpoint_manager import RunRecorder

DESCRIPTION = """\
Measure how much a snapshot slows down a pipeline that keeps training.

Examples:
  rayff bench snapshot --arch tinycnn --batch-size 16 --repeats 1
  rayff bench snapshot --arch resnet --save bench-snapshot.json

The snapshot is copied, sent to the driver and written to disk while training continues.
"""


@dataclass(frozen=True, kw_only=True)
class SnapshotCommand:
    """The options."""

    arch: str = "resnet"
    """Architecture: {architectures}."""
    stages: int = 2
    """Stages, of one CPU each."""
    batch_size: int = 128
    """Images per batch."""
    steps: int = 4
    """Batches per measurement, with or without one snapshot."""
    epoch_images: int = 45_000
    """Images per epoch, each with one snapshot. Default: as in CIFAR-10."""
    repeats: int = 3
    """Pairs of measurements, of which the median is reported."""
    save: str | None = None
    """JSON file to write the figures to."""


def main(args: Sequence[str]) -> int:
    """Time, print, and save where asked."""
    command = parse(
        SnapshotCommand, module="rayff.bench snapshot", description=DESCRIPTION, args=args
    )
    at_least_one(
        stages=command.stages,
        batch_size=command.batch_size,
        steps=command.steps,
        epoch_images=command.epoch_images,
        repeats=command.repeats,
    )
    check_save(command.save)
    with tempfile.TemporaryDirectory(prefix="rayff-snapshot-") as folder:
        outcome = measure(command, Path(folder) / "run")
    outcome.show()
    outcome.save(command.save)
    return 0


class _Silent:
    def on_checkpoint(self, path: Path) -> None:
        pass

    def on_warning(self, message: str) -> None:
        print(message)


def measure(command: SnapshotCommand, run_dir: Path) -> Outcome:
    """Return the benchmark's table and figures."""
    from rayff.distributed.session import ray_session
    from rayff.distributed.training import open_pipeline

    run = TrainConfig(
        arch=command.arch,
        batch_size=command.batch_size,
        stages=command.stages,
        cpus_per_stage=1,
        chunk=1,
        run_dir=str(run_dir),
    ).resolved({})
    made = prepared(run)
    with ray_session(), open_pipeline(made, notify=print) as (plan, pipeline):
        made = made.settled(plan.precision, plan.kernels)
        made.directory.create(made.run)
        with RunRecorder(made, _Silent()) as recorder:
            ends: list[float] = []
            writes: list[float] = []
            size = 0
            for asked, reports in pipeline.stream(_commands(command)):
                if isinstance(asked, Snapshot):
                    began = time.perf_counter()
                    states = {i: state for r in reports for i, state in r.states.items()}
                    size = sum(state.nbytes for state in states.values())
                    recorder.add_snapshot(
                        Checkpoint(step=asked.batch, progress=Progress(), states=states),
                        final=False,
                    )
                    writes.append(time.perf_counter() - began)
                else:
                    ends.append(time.perf_counter())
    marks = np.array(ends)[command.steps - 1 :: command.steps]
    stretches = np.diff(marks)
    without, with_one = stretches[0::2].tolist(), stretches[1::2].tolist()
    costs = [b - a for a, b in zip(without, with_one, strict=True)]
    epoch_s = median(without) / command.steps * command.epoch_images / command.batch_size
    outcome = Outcome("snapshot", dataclasses.asdict(command))
    table = outcome.table(
        f"{command.arch}, batch {command.batch_size}, {command.stages} stages, "
        f"{command.steps} batches a stretch",
        *("", "seconds: median (least-most)"),
    )
    table.add_row("stretch without a snapshot", spread(without))
    table.add_row("stretch with one", spread(with_one))
    table.add_row("cost of a snapshot", spread(costs))
    table.add_row("of that, the driver waits", spread(writes))
    share = median(costs) / epoch_s
    outcome.notes.append(
        f"{size / 2**20:.0f} MiB; an epoch of {command.epoch_images:,} images takes "
        f"{epoch_s:.0f} s at this pace, of which one snapshot is {100 * share:.2f}%"
    )
    outcome.figures = {
        "without_s": without,
        "with_s": with_one,
        "costs_s": costs,
        "driver_s": writes,
        "bytes": size,
        "epoch_s": epoch_s,
        "share_of_epoch": share,
    }
    return outcome


def _commands(command: SnapshotCommand) -> Iterator[Command]:
    """Yield a stretch to warm up, then pairs: without a snapshot, and with one at its beginning.

    A stretch ends when its last batch has passed the last stage.
    """
    indices = np.arange(command.batch_size)
    step = 0
    for stretch in range(1 + 2 * command.repeats):
        if stretch and stretch % 2 == 0:
            yield Snapshot(epoch=0, batch=step)
        for _ in range(command.steps):
            yield Train(epoch=0, step=step, lr=0.01, batches=(indices,))
            step += 1
