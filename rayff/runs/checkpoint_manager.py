"""What a run leaves behind as it goes: metrics, snapshots, events; none of it stops the stream.

    snapshot lands -1-> latest, in memory -2-> background: checkpoint and model on disk
                                               -3-> outcome, told to the callback
                                               -4-> background: the copy in the storage

(1) A run that loses a stage goes on from the newest snapshot in memory, written or not. (2) One is
written at a time; the next waits for it, so that no more than two are in memory. (3) A write that
fails is a warning, since the checkpoint before it stays; only that of the final snapshot is an
error. (4) The copy follows as fast as the storage lets it, past checkpoints that are old by then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from rayff.config.errors import RunError
from rayff.engine.preparation import Prepared
from rayff.runs.checkpoint import Checkpoint, Progress
from rayff.runs.metrics import EpochRecord, Metrics
from rayff.runs.timeline import FILE as TIMELINE
from rayff.runs.timeline import Timeline

EVENTS = "events.jsonl"


class Told(Protocol):
    """Who hears of checkpoints and of what went wrong."""

    def on_checkpoint(self, path: Path) -> None:
        """A checkpoint is on disk."""
        ...

    def on_warning(self, message: str) -> None:
        """Something went wrong that does not end the run."""
        ...


class RunRecorder:
    """Keeps a run's records and its newest snapshot, and writes them; a context manager.

    Args:
        prepared: the run, settled, with its directory made.
        told: who hears of it.
        writer: writes in the background; by default a thread.

    Attributes:
        latest: the newest snapshot, where the run goes on; None before the first.
        reached: batches trained so far, snapshot or not.
        timeline: when each stage did what.
    """

    def __init__(self, prepared: Prepared, told: Told, writer: Executor | None = None) -> None:
        self.prepared = prepared
        self.told = told
        self.latest = prepared.checkpoint
        self.reached = self.step
        self._writer = writer or ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: tuple[Checkpoint, Future[Path]] | None = None
        self._storage = prepared.storage
        self._sender = writer or ThreadPoolExecutor(1, thread_name_prefix="storage")
        self._sending: Future[None] | None = None
        self._behind = False
        tensorboard = "tensorboard" in prepared.run.loggers
        self._metrics = Metrics(prepared.directory.path, tensorboard=tensorboard)
        self._metrics.load(self.progress.epoch)
        self.timeline = Timeline(prepared.directory.path, self.progress.epoch)

    def __enter__(self) -> RunRecorder:
        return self

    def __exit__(self, *exception: object) -> None:
        self._metrics.__exit__()
        self._collect(wait=True)
        self._writer.shutdown()
        self._send(wait=True)
        self._sender.shutdown()

    @property
    def step(self) -> int:
        """Batches trained at the newest snapshot."""
        return 0 if self.latest is None else self.latest.step

    @property
    def progress(self) -> Progress:
        """Where the run goes on."""
        return Progress() if self.latest is None else self.latest.progress

    @property
    def records(self) -> list[EpochRecord]:
        """Of all epochs, those before a resumption included."""
        return self._metrics.records

    def go_back(self) -> None:
        """Forget the epochs behind the newest snapshot, which will be trained again."""
        self._metrics.go_back(self.progress.epoch)
        self.timeline = Timeline(self.prepared.directory.path, self.progress.epoch)

    def add_epoch(self, record: EpochRecord) -> None:
        """Keep the record of an epoch."""
        self._attempt(
            lambda: self._metrics.append(record),
            f"metrics of epoch {record.epoch} not written ({{}}): they will be with those of the "
            "next epoch",
        )
        self._attempt(self.timeline.write, f"{TIMELINE} could not be written ({{}})")

    def add_snapshot(self, snapshot: Checkpoint, *, final: bool) -> None:
        """Keep a snapshot, and write it while the run goes on; the final one is waited for.

        Raises:
            RunError: the final one cannot be written.
        """
        self.latest = snapshot
        self._collect(wait=True)
        window = self._metrics.window(default=(0, self.prepared.num_classifiers - 1))
        self._writing = snapshot, self._writer.submit(self._write, snapshot, window)
        self._collect(wait=final, final=final)

    def add_event(self, event: str, **facts: Any) -> None:
        """Add a line to events.jsonl: what happened to the run, when and where it stood."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts})

        def append() -> None:
            with (self.prepared.directory.path / EVENTS).open("a") as file:
                file.write(line + "\n")

        self._attempt(append, f"{EVENTS} could not be written ({{}})")

    def poll(self) -> None:
        """Say whether a write has ended since the last time."""
        self._collect(wait=False)
        self._send(wait=False)

    def _write(self, snapshot: Checkpoint, window: tuple[int, int]) -> Path:
        path = self.prepared.checkpoints.write(snapshot)
        self.prepared.export_model(snapshot, window)
        return path

    def _collect(self, *, wait: bool, final: bool = False) -> None:
        if self._writing is None or not (wait or self._writing[1].done()):
            return
        (snapshot, future), self._writing = self._writing, None
        try:
            path = future.result()
        except OSError as error:
            what = f"the checkpoint of step {snapshot.step} could not be written ({reason(error)})"
            if final:
                raise RunError(
                    f"{what}; the one before it stays: make room in "
                    f"{self.prepared.directory.path} and go on with --resume"
                ) from error
            self.told.on_warning(f"{what}: training goes on, the one before it stays")
        else:
            self.told.on_checkpoint(path)
            self._behind = True

    def _send(self, *, wait: bool) -> None:
        """Bring the copy in the storage up to date, one sending at a time."""
        while self._storage is not None and (self._sending is not None or self._behind):
            if self._sending is None:
                self._behind = False
                keep = self.prepared.run.keep_checkpoints
                self._sending = self._sender.submit(self._storage.push, keep)
            if not (wait or self._sending.done()):
                return
            sent, self._sending = self._sending, None
            try:
                sent.result()
            except OSError as error:
                self.told.on_warning(
                    f"the copy in {self._storage.name} is behind ({reason(error)}): training goes "
                    "on, and the next checkpoint is sent again"
                )

    def _attempt(self, write: Callable[[], None], message: str) -> None:
        try:
            write()
        except OSError as error:
            self.told.on_warning(message.format(reason(error)))


def reason(error: OSError) -> str:
    """Return what went wrong with a file, on one line."""
    return error.strerror or " ".join(str(error).split())
