"""The command `rayff bench startup`: Time a training from its command line to its first step.

Starts `rayff train` as a user does, and reads in the events of its run directory when it came how
far; the training is stopped then. Each one is a process of its own; the first fills the caches and
is shown apart.

Examples:
  rayff bench startup --limit 16 --batch-size 8 --repeats 2
  rayff bench startup --arch resnet --task cifar10 --data-dir DATA --repeats 5
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rayff.bench.command import BenchCommand, benchmark
from rayff.bench.results import Results
from rayff.config.errors import UserError
from rayff.runs.recorder import EVENTS
from rayff.trainer import Backend


@dataclass(frozen=True, kw_only=True)
class StartupCommand(BenchCommand):
    """The options."""

    arch: str = "tinycnn"
    """Network: {architectures}, or package.module:function."""
    task: str = "digits"
    """Data: {tasks}, a folder or URI of images, or package.module:function."""
    data_dir: str | None = None
    """Folder that holds the task's data."""
    limit: int | None = None
    """Images of each split to use at most. Default: all, of which one batch is trained."""
    batch_size: int | None = None
    """Images of a batch. Default: the task's own, else the paper's."""
    backend: Backend = "ray"
    """Where the stages run, as in training."""
    repeats: int = 5
    """Trainings with warm caches, of which the median is reported."""


def measure(command: StartupCommand, results: Results) -> None:
    """Fill in the table."""
    runs = [started(command) for _ in range(1 + command.repeats)]
    results.figures |= {"first": runs[0], "others": runs[1:]}
    results.table(
        f"{command.arch} on {command.task}: seconds from the command line",
        [
            {
                "until": text,
                "first_s": runs[0][name],
                "others_s": [run[name] for run in runs[1:]],
            }
            for name, text in _MOMENTS.items()
        ],
        "until first_s others_s",
    )


main = benchmark(StartupCommand, measure)

_MOMENTS = {
    "begun_s": "the first stage begins its first step",
    "done_s": "the first chunk has left the last stage",
}


def started(command: StartupCommand) -> dict[str, float]:
    """Train until the first chunk is learned; return after how many seconds it came so far.

    Raises:
        UserError: the training failed.
    """
    options = {
        "arch": command.arch,
        "task": command.task,
        "data-dir": command.data_dir,
        "limit": command.limit,
        "batch-size": command.batch_size,
        "backend": command.backend,
    }
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    with TemporaryDirectory(prefix="rayff-startup-") as folder:
        run_dir = Path(folder) / "run"
        words += ["--chunk=1", "--logger=none", f"--run-dir={run_dir}"]
        start_s = time.time()
        with subprocess.Popen(
            [sys.executable, "-m", "rayff.train", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            while (running := _running(run_dir)) is None and process.poll() is None:
                time.sleep(0.05)
            process.terminate()
            _, said = process.communicate()
        if running is None:
            raise UserError(f"the training failed: {said.strip().removeprefix('error: ')}")
    return {"begun_s": running["began"] - start_s, "done_s": running["time"] - start_s}


def _running(run_dir: Path) -> dict[str, float] | None:
    """Return the event of the first chunk, once there is one."""
    file = run_dir / EVENTS
    lines = file.read_text().splitlines() if file.exists() else []
    events = map(json.loads, lines)
    return next((event for event in events if event["event"] == "running"), None)
