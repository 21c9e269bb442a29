"""When each stage did what: the timeline of a run's first and newest epoch, as Parquet."""

from __future__ import annotations

import dataclasses
import io
import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rayff.config.errors import UserError
from rayff.runs.files import write_atomically

FILE = "timeline.parquet"
KINDS = ("train", "valid", "test")
MAX_ROWS = 1000
"""Of the beginning of an epoch, and of its end: the file holds four times that at most."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """What one stage did for one command."""

    epoch: int
    """From 1."""
    kind: str
    """train, valid or test."""
    step: int
    """Number of the command's first batch: over the whole run (train) or within the split."""
    stage: int
    started_s: float
    """Seconds since 1970 by the clock of the stage's node."""
    busy_s: float


_SCHEMA = pa.schema(
    [
        ("epoch", pa.int64()),
        ("kind", pa.string()),
        ("step", pa.int64()),
        ("stage", pa.int64()),
        ("started_s", pa.float64()),
        ("busy_s", pa.float64()),
    ]
)


@dataclass
class _Epoch:
    """The beginning and the end of an epoch, of which the middle is dropped where it is long."""

    head: list[Span] = field(default_factory=list)
    tail: deque[Span] = field(default_factory=lambda: deque(maxlen=MAX_ROWS))

    def add(self, spans: Iterable[Span]) -> None:
        for span in spans:
            (self.head if len(self.head) < MAX_ROWS else self.tail).append(span)

    @property
    def spans(self) -> list[Span]:
        return [*self.head, *self.tail]


class Timeline:
    """The spans of a run's first and newest epoch, written to its directory.

    Args:
        directory: the run directory.
        epochs_done: complete epochs of a resumed run, of which the first is kept.
    """

    def __init__(self, directory: Path, epochs_done: int = 0) -> None:
        self.path = directory / FILE
        self._epochs: dict[int, _Epoch] = {}
        self._batches: dict[tuple[int, str], int] = {}
        if epochs_done and self.path.exists():
            try:
                spans = read_timeline(self.path)
            except UserError:  # a picture of the past is no reason not to go on
                spans = []
            first = min((span.epoch for span in spans), default=math.inf)
            if first <= epochs_done:
                self._epoch(int(first)).add(span for span in spans if span.epoch == first)

    def add(
        self,
        *,
        epoch: int,
        kind: str,
        step: int | None,
        num_batches: int,
        spans: Iterable[tuple[float, float]],
    ) -> None:
        """Add what the stages did for one command.

        Args:
            epoch: from 1.
            kind: train, valid or test.
            step: of the first batch; None to count the split's batches.
            num_batches: batches of the command.
            spans: start and duration of each stage in seconds.
        """
        if step is None:
            step = self._batches.get((epoch, kind), 0)
            self._batches = {(epoch, kind): step + num_batches}
        self._epoch(epoch).add(
            Span(
                epoch=epoch,
                kind=kind,
                step=step,
                stage=stage,
                started_s=started_s,
                busy_s=busy_s,
            )
            for stage, (started_s, busy_s) in enumerate(spans)
        )

    def _epoch(self, number: int) -> _Epoch:
        """Return the epoch, and forget those between the first and it."""
        if number not in self._epochs:
            self._epochs = {n: e for n, e in self._epochs.items() if n == min(self._epochs)}
            self._epochs[number] = _Epoch()
        return self._epochs[number]

    def write(self) -> None:
        """Write what there is, in the place of what was there."""
        spans = [span for epoch in self._epochs.values() for span in epoch.spans]
        table = pa.Table.from_pylist(list(map(dataclasses.asdict, spans)), schema=_SCHEMA)
        sink = io.BytesIO()
        pq.write_table(table, sink)
        write_atomically(self.path, sink.getvalue())


def read_timeline(path: Path) -> list[Span]:
    """Read the spans of a timeline.parquet; UserError where it is none."""
    try:
        table = pq.read_table(path)
        if table.schema != _SCHEMA or any(column.null_count for column in table.columns):
            raise ValueError(f"its columns are not those of {', '.join(_SCHEMA.names)}")
        spans = [Span(**row) for row in table.to_pylist()]
        for span in spans:
            if span.kind not in KINDS or span.stage < 0 or not span.busy_s >= 0:
                raise ValueError(f"it holds the impossible {span}")
            if not math.isfinite(span.started_s + span.busy_s):
                raise ValueError(f"it holds the impossible {span}")
        return spans
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is no timeline of a run: {reason}; move it away") from error
