"""The runs below a folder: their options, states and accuracies, read without torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Set
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.runs.metrics import METRICS_FILE
from rayff.runs.record import COMPLETE, FAILED, RECORD, STOPPED, Session, read_sessions
from rayff.runs.run_directory import CONFIG, SEARCH, TRIALS, RunDirectory, read_json
from rayff.runs.run_lock import is_held

RUNNING, INTERRUPTED, UNFINISHED, DAMAGED = "running", "interrupted", "unfinished", "damaged"
"""States besides those of the record: a process is at work; it was killed; epochs are left, and
no record says why; it cannot be read."""
_MARKS = (RECORD, METRICS_FILE, "events.jsonl")
"""Files beside config.json, which other programs write too."""
_COLUMNS = ["epoch", "valid_accuracy", "test_accuracy", "elapsed_s"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Accuracies of an epoch in percent, with the run's window of layers."""

    epoch: int
    valid_accuracy: float
    test_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A run or a search as it is listed."""

    path: Path
    kind: str = "run"
    """run, trial or search."""
    state: str
    start: str
    """ISO 8601, with the time zone; of the first session."""
    end_reason: str | None = None
    """Of the newest session."""
    method: str = ""
    arch: str = ""
    task: str = ""
    loss: str = ""
    epochs_done: int = 0
    epochs: int | None = None
    """Of the whole run."""
    seconds: float = 0.0
    """Of all epochs."""
    best: Scores | None = None
    """The first epoch with the best validation accuracy."""
    newest: Scores | None = None
    tags: tuple[str, ...] = ()
    notes: str = ""
    trials: int | None = None
    """Of a search: how many have begun."""
    sessions: tuple[Session, ...] = ()
    error: str = ""
    """Why a damaged one cannot be read."""

    @property
    def began(self) -> datetime:
        """When it was started."""
        return datetime.fromisoformat(self.start).astimezone()


def list_runs(folder: Path, tags: Set[str] = frozenset()) -> list[Listed]:
    """Return the runs and searches below a folder, the newest first.

    The trials of a search follow it.

    Args:
        folder: a folder of runs, or a run or search itself.
        tags: those that a run must have; searches have none.

    Raises:
        UserError: the folder cannot be read.
    """
    try:
        next(os.scandir(folder), None)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be read: {error.strerror}; name a folder of runs"
        ) from error
    groups = [list(_group(path)) for path in _find(folder)]
    wanted = [[each for each in group if tags <= {*each.tags}] for group in groups]
    wanted.sort(key=lambda group: [each.began for each in group[:1]], reverse=True)
    return [each for group in wanted for each in group]


def _find(folder: Path) -> Iterator[Path]:
    """Yield the runs and searches; those within a run, or a search, are its own."""
    for path, folders, files in os.walk(folder):
        if SEARCH in files or is_run(Path(path)):
            folders.clear()
            yield Path(path)
        folders[:] = [name for name in folders if not name.startswith(".")]


def is_run(path: Path) -> bool:
    """Return whether a folder holds a run."""
    has_config = (path / CONFIG).is_file()
    return (has_config or is_held(path)) and any((path / name).exists() for name in _MARKS)


def _group(path: Path) -> Iterator[Listed]:
    """Yield a run; or a search and its trials, the first ones first."""
    if not (path / SEARCH).is_file():
        yield _listed(path)
        return
    trials = [
        _listed(trial, "trial") for trial in sorted((path / TRIALS).glob("*")) if is_run(trial)
    ]
    yield _search(path, trials)
    yield from trials


def _search(path: Path, trials: list[Listed]) -> Listed:
    """Return a search: its best trial's accuracies, and the state of the whole."""
    states = {trial.state for trial in trials}
    error = ""
    try:
        expected = read_json(path / SEARCH)["num_trials"]
    except (UserError, KeyError, TypeError) as broken:
        expected, error = None, f"{path / SEARCH} is not the file of a search: {broken}"
    if error:
        state = DAMAGED
    elif is_held(path):
        state = RUNNING
    elif FAILED in states:
        state = FAILED
    else:
        is_whole = len(trials) == expected and (path / "results.parquet").exists()
        state = COMPLETE if is_whole and INTERRUPTED not in states else STOPPED
    best = [trial.best for trial in trials if trial.best is not None]
    return Listed(
        path=path,
        kind="search",
        state=state,
        start=min((trial.start for trial in trials), default=_changed(path / SEARCH)),
        seconds=sum(trial.seconds for trial in trials),
        best=max(best, key=lambda scores: scores.valid_accuracy, default=None),
        trials=len(trials),
        error=error,
    )


def _listed(path: Path, kind: str = "run") -> Listed:
    """Return a run; one that cannot be read is damaged."""
    start = _changed(path / CONFIG)
    try:
        sessions = read_sessions(path)
        start = sessions[0].start if sessions else start
        config = RunDirectory(path).read_config()
        rows = _read_rows(path / METRICS_FILE)
    except UserError as error:
        return Listed(path=path, kind=kind, state=DAMAGED, start=start, error=str(error))
    scores = [
        Scores(**{name: row[name] for name in _COLUMNS if name != "elapsed_s"}) for row in rows
    ]
    last = sessions[-1] if sessions else None
    epochs_done = rows[-1]["epoch"] if rows else 0
    return Listed(
        path=path,
        kind=kind,
        state=_state(path, config, last, epochs_done),
        start=start,
        end_reason=None if last is None else last.reason,
        method=config.method,
        arch=config.arch,
        task=config.task,
        loss=config.loss if config.method == "ff" else config.method,
        epochs_done=epochs_done,
        epochs=config.epochs,
        seconds=sum(row["elapsed_s"] for row in rows),
        best=max(scores, key=lambda each: each.valid_accuracy, default=None),
        newest=scores[-1] if scores else None,
        tags=config.tag_names,
        notes=config.notes or "",
        sessions=tuple(sessions),
    )


def _state(path: Path, config: TrainConfig, last: Session | None, epochs_done: int) -> str:
    if is_held(path):
        return RUNNING
    if last is None:
        return COMPLETE if epochs_done == config.epochs else UNFINISHED
    return INTERRUPTED if last.reason is None else last.reason.partition(" ")[0].rstrip(":")


def _read_rows(metrics: Path) -> list[dict[str, Any]]:
    """Return the few columns that a list needs; no rows before the first epoch is complete."""
    if not metrics.exists():
        return []
    try:
        rows: list[dict[str, Any]] = pq.read_table(metrics, columns=_COLUMNS).to_pylist()
        if not all(math.isfinite(row[name]) for row in rows for name in _COLUMNS):
            raise ValueError("a number is not finite")
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{metrics} is no metrics file of a run: {said}") from error
    return rows


def _changed(path: Path) -> str:
    """Return when a file was written, for a run without a record."""
    try:
        seconds = path.stat().st_mtime
    except OSError:
        seconds = 0.0
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
