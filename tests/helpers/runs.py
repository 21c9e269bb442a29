"""Whole trainings in this process, and what they leave: used by tests of every package."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rayff import TrainConfig, Trainer
from rayff.engine.callbacks import Callback
from rayff.engine.commands import Evaluate, Report, Train
from rayff.engine.run import Run, TrainResult
from rayff.partition.plan import Plan
from rayff.runs.checkpoint import Progress
from rayff.runs.metrics import EpochRecord

TIMES_AND_PLAN: dict[str, Any] = {
    "images_per_s": 0.0,
    "elapsed_s": 0.0,
    "stage_busy": [],
    "cuts": [],
    "data_wait": 0.0,
}
"""Fields of a record that depend on the time it takes and on the plan."""


class RecordingCallback(Callback):
    """Writes down a line an event; `act` is called after each with the line."""

    def __init__(self, act: Callable[[str], object] = lambda line: None) -> None:
        self.lines: list[str] = []
        self.records: list[EpochRecord] = []
        self.act = act

    def _add(self, line: str) -> None:
        self.lines.append(line)
        self.act(line)

    def on_start(self, run: Run, plan: Plan) -> None:
        self._add("start")

    def on_chunk_end(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        self._add(f"train {command.step}" if isinstance(command, Train) else command.split)

    def on_epoch_end(self, record: EpochRecord) -> None:
        self.records.append(record)
        self._add(f"epoch {record.epoch}")

    def on_checkpoint(self, path: Path) -> None:
        self._add(path.name)

    def on_restart(self, stage_names: Sequence[str], progress: Progress) -> None:
        self._add(f"restart {progress.epoch}")

    def on_warning(self, message: str) -> None:
        self._add(f"warning: {message}")

    def on_end(self, error: BaseException | None) -> None:
        self._add("end" if error is None else f"end: {type(error).__name__}")


class AtChunk(Callback):
    """Calls `action` once, after so many chunks."""

    def __init__(self, chunks: int, action: Callable[[], object]) -> None:
        self.chunks = chunks
        self.action = action

    def on_chunk_end(self, command: Train | Evaluate, reports: Sequence[Report]) -> None:
        self.chunks -= 1
        if self.chunks == 0:
            self.action()


class StopAfter(AtChunk):
    """Asks the run to stop after so many chunks."""

    def __init__(self, chunks: int) -> None:
        super().__init__(chunks, self.request_stop)


class Killed(BaseException):
    """The process would be gone."""


class KillAfter(AtChunk):
    """Ends the run by an exception after so many chunks."""

    def __init__(self, chunks: int) -> None:
        super().__init__(chunks, self._raise)

    def _raise(self) -> None:
        raise Killed


def train_locally(config: TrainConfig, *callbacks: Callback, resume: bool = False) -> TrainResult:
    """Train in this process, with one thread, torch's kernels and float32 unless said."""
    defaults: dict[str, Any] = {"chunk": 1, "cpus_per_stage": 1, "precision": "fp32"}
    if config.method == "ff" and config.rule != "plain" and config.loss == "goodness":
        defaults["kernels"] = "conv"
    unset = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    config = dataclasses.replace(config, **unset)
    return Trainer(config, callbacks, backend="local", quiet=True).fit(resume=resume)


def train_on_ray(config: TrainConfig, *callbacks: Callback, resume: bool = False) -> TrainResult:
    """Train as actors, and show nothing."""
    return Trainer(config, callbacks, quiet=True).fit(resume=resume)


def layer_files(run_dir: Path | str | None, step: int | None = None) -> dict[str, bytes]:
    """Return weights and optimizer state of every layer, byte for byte; of the newest step."""
    checkpoints = Path(str(run_dir)) / "checkpoints"
    folder = max(checkpoints.glob("step-*")) if step is None else checkpoints / f"step-{step:08d}"
    files = {path.name: path.read_bytes() for path in folder.glob("layer-*.safetensors")}
    assert files, f"{folder} has no layers"
    return files


def timeless(records: Sequence[EpochRecord]) -> list[EpochRecord]:
    """Return the records without what differs from one run or plan to the next."""
    return [dataclasses.replace(record, **TIMES_AND_PLAN) for record in records]


def events(run_dir: Path | str, kind: str) -> list[dict[str, Any]]:
    """Return the run's events of a kind."""
    lines = (Path(run_dir) / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]
