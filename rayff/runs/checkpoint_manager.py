"""Keeps a run's newest snapshot and writes checkpoints in the background.

    snapshot -1-> latest, in memory -2-> background: checkpoint and model on disk
                                               -3-> on_checkpoint
                                               -4-> background: the copy in the storage

(1) A run that loses a stage goes on from the newest snapshot in memory, written or not. (2) One is
written at a time; the next waits for it, so that no more than two are in memory. (3) A write that
fails is a warning, since the checkpoint before it stays; only that of the final snapshot is an
error. (4) The copy follows as fast as the storage lets it, and skips checkpoints that are old by
then.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from rayff.config.errors import RunError
from rayff.runs.checkpoint import Checkpoint, CheckpointStore, Progress
from rayff.runs.metrics import EpochRecord
from rayff.runs.storage import Storage


class CheckpointManager:
    """A run's snapshots and checkpoints; a context manager.

    Args:
        store: the folder of the checkpoints.
        export: writes the model of a snapshot, given the record of the epoch that ended with it
            if one did.
        storage: where a copy of the run directory is kept; None for nowhere.
        latest: the checkpoint that the run goes on from; None at the start.
        on_checkpoint: called with the folder of each checkpoint on disk.
        on_warning: called with what failed.

    Attributes:
        latest: the newest snapshot, where the run goes on; None before the first.
    """

    def __init__(
        self,
        store: CheckpointStore,
        export: Callable[[Checkpoint, EpochRecord | None], None],
        storage: Storage | None,
        latest: Checkpoint | None,
        *,
        on_checkpoint: Callable[[Path], None],
        on_warning: Callable[[str], None],
    ) -> None:
        self.store = store
        self.export = export
        self.storage = storage
        self.latest = latest
        self.on_checkpoint = on_checkpoint
        self.on_warning = on_warning
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="storage")
        self._writing: tuple[Checkpoint, Future[Path]] | None = None
        self._sending: Future[None] | None = None
        self._unsent = False
        self._is_current = False

    def __enter__(self) -> CheckpointManager:
        return self

    def __exit__(self, *exception: object) -> None:
        self._collect(wait=True)
        self._writer.shutdown()
        self._send(wait=True)
        self._send_record()
        self._sender.shutdown()

    @property
    def step(self) -> int:
        """Batches trained at the newest snapshot."""
        return 0 if self.latest is None else self.latest.step

    @property
    def progress(self) -> Progress:
        """Where the run goes on."""
        return Progress() if self.latest is None else self.latest.progress

    def add(self, snapshot: Checkpoint, *, final: bool, record: EpochRecord | None = None) -> None:
        """Keep a snapshot, and write it while the run goes on; the final one is waited for.

        Args:
            snapshot: of all layers.
            final: whether it is the last of the run.
            record: of the epoch that ended with it; None in the middle of one.

        Raises:
            RunError: the final one cannot be written.
        """
        self.latest = snapshot
        self._collect(wait=True)
        self._writing = snapshot, self._writer.submit(self._write, snapshot, record)
        self._collect(wait=final, final=final)

    def poll(self) -> None:
        """Report background work that has ended since the last call."""
        self._collect(wait=False)
        self._send(wait=False)

    def settle(self) -> None:
        """Wait until the snapshots so far are on the disk; from any thread."""
        try:
            self._writer.submit(int).result()  # behind the writes: there is one thread for them
        except RuntimeError:  # closing down
            self._writer.shutdown()

    def _write(self, snapshot: Checkpoint, record: EpochRecord | None) -> Path:
        path = self.store.write(snapshot)
        self.export(snapshot, record)
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
                    f"{self.store.directory.parent} and continue with --resume"
                ) from error
            self.on_warning(f"{what}: training goes on, the one before it stays")
        else:
            self.on_checkpoint(path)
            self._unsent = True

    def _send(self, *, wait: bool) -> None:
        """Bring the copy in the storage up to date, one transfer at a time."""
        while self.storage is not None and (self._sending is not None or self._unsent):
            if self._sending is None:
                self._unsent = False
                self._sending = self._sender.submit(self.storage.push, self.store.keep)
            if not (wait or self._sending.done()):
                return
            sent, self._sending = self._sending, None
            try:
                sent.result()
                self._is_current = True
            except OSError as error:
                self._is_current = False
                self.on_warning(
                    f"the copy in {self.storage.name} is behind ({reason(error)}): training goes "
                    "on, and the next checkpoint is sent again"
                )

    def _send_record(self) -> None:
        """Send how the run ended, which is known behind the last checkpoint."""
        if self.storage is None or not self._is_current:
            return
        try:
            self.storage.push_record()
        except OSError as error:
            self.on_warning(
                f"the copy in {self.storage.name} does not say how the run ended ({reason(error)})"
            )


def reason(error: OSError) -> str:
    """Return what went wrong with a file, on one line."""
    return error.strerror or " ".join(str(error).split())
