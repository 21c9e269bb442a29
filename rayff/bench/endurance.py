"""python -m rayff.bench endurance: memory of driver, stages and object store over a long training.

Counted is what a process has for itself (its unique set); the object store's pages, which its
readers map, are counted once, by Ray.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from rayff.bench.outcome import Outcome, at_least_one, check_save, median
from rayff.cli import parse
from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.console.run_view import observe_quietly
from rayff.distributed.pipeline import store_used
from rayff.distributed.training import train

DESCRIPTION = """\
Train for a while and sample the memory of the driver, the stages and the object store.

Examples:
  rayff bench endurance --minutes 2
  rayff bench endurance --minutes 60 --save bench-endurance.json
"""

PARTS = 10
"""Of the time; the first one is the warm-up."""
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class EnduranceCommand:
    """The options."""

    minutes: float = 60.0
    """Minutes of training."""
    every_s: float = 10.0
    """Seconds between samples."""
    arch: str = "tinycnn"
    """Architecture: {architectures}."""
    width: int | None = None
    """Channels of the first layer. Default: the architecture's own."""
    task: str = "digits"
    """Data set: {tasks}, or a folder of Parquet files."""
    data_dir: str | None = None
    """Folder of the data set."""
    stages: int = 2
    """Number of stages."""
    save: str | None = None
    """JSON file to write the figures to."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Memory at one moment, in bytes."""

    at_s: float
    driver: int
    stages: int
    """Of all stages together."""
    store: int
    """In use."""


def main(args: Sequence[str]) -> int:
    """Train, print, and save where asked."""
    command = parse(
        EnduranceCommand, module="rayff.bench endurance", description=DESCRIPTION, args=args
    )
    at_least_one(stages=command.stages)
    if not (command.minutes > 0 and command.every_s > 0):
        raise UserError("--minutes and --every-s must be more than 0")
    check_save(command.save)
    with tempfile.TemporaryDirectory(prefix="rayff-endurance-") as folder:
        run = TrainConfig(
            arch=command.arch,
            width=command.width,
            task=command.task,
            data_dir=command.data_dir,
            stages=command.stages,
            epochs=10**6,
            run_dir=str(Path(folder) / "run"),
        )
        samples: list[Sample] = []
        with sampling(samples, command):
            result = train(run, observe_quietly)
    outcome = summary(command, samples, epochs=len(result.records))
    outcome.show()
    outcome.save(command.save)
    return 0


@contextmanager
def sampling(samples: list[Sample], command: EnduranceCommand) -> Iterator[None]:
    """Add samples while inside; when the time is over, ask the training to stop."""
    over = threading.Event()

    def sample() -> None:
        began: float | None = None
        while not over.wait(command.every_s):
            stages = _stages()
            if not stages:
                continue  # still starting
            began = began or time.monotonic()
            samples.append(
                Sample(
                    at_s=time.monotonic() - began,
                    driver=psutil.Process().memory_full_info().uss,
                    stages=sum(stages),
                    store=store_used(),
                )
            )
            if time.monotonic() - began >= 60 * command.minutes:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _stages() -> list[int]:
    """Return the memory of each stage of this process's own Ray instance."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "StageActor" in " ".join(process.cmdline()):
                found.append(process.memory_full_info().uss)
        except psutil.Error:
            continue
    return found


def summary(command: EnduranceCommand, samples: Sequence[Sample], epochs: int) -> Outcome:
    """Return the table of memory over time and how much it grew after the warm-up."""
    if len(samples) < 3:
        raise UserError("too few samples: choose more --minutes, or a smaller --every-s")
    outcome = Outcome("endurance", dataclasses.asdict(command))
    total_s = samples[-1].at_s
    table = outcome.table(
        f"{command.arch} on {Path(command.task).name}, {command.stages} stages, {epochs} epochs: "
        "MiB (median of each part)",
        *("minutes", "driver", "stages", "object store in use"),
    )
    rows = []
    for part in range(PARTS):
        inside = [
            each
            for each in samples
            if part * total_s / PARTS <= each.at_s <= (part + 1) * total_s / PARTS
        ]
        if not inside:
            continue
        row = {
            name: median([getattr(each, name) for each in inside])
            for name in ("driver", "stages", "store")
        }
        rows.append(row)
        table.add_row(
            f"{part * total_s / PARTS / 60:.1f}-{(part + 1) * total_s / PARTS / 60:.1f}",
            *(f"{value / MIB:.0f}" for value in row.values()),
        )
    growth = {
        name: (rows[-1][name] - rows[min(1, len(rows) - 1)][name]) / MIB
        for name in ("driver", "stages", "store")
    }
    outcome.notes.append(
        "growth from the second part to the last: "
        + ", ".join(f"{name} {mib:+.1f} MiB" for name, mib in growth.items())
    )
    outcome.figures = {
        "epochs": epochs,
        "growth_mib": growth,
        "samples": [dataclasses.asdict(each) for each in samples],
    }
    return outcome
