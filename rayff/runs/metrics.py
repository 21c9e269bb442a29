"""Metrics of each epoch that is evaluated, and their files: Parquet, CSV, TensorBoard."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayff.config.errors import UserError
from rayff.config.text import layer_range
from rayff.runs.files import write_atomically

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.parquet"
"""File of a run directory that has its records."""


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One row of the metrics; accuracies are in percent, lists go by layer or by stage."""

    epoch: int
    """From 1."""
    step: int
    """Batches since the run began."""
    lr: float
    """Of the epoch's last batch and the first layer."""
    train_loss: float
    """Mean over the images and the layers."""
    valid_accuracy: float
    """With the SIP window."""
    test_accuracy: float
    """With the SIP window, which the validation images chose."""
    last_valid_accuracy: float
    """With the last layer alone."""
    last_test_accuracy: float
    """With the last layer alone."""
    sip_first: int
    sip_last: int
    images_per_s: float
    """Training images a second; evaluation is not counted."""
    elapsed_s: float
    """Seconds since the record before, evaluation included."""
    layer_loss: list[float]
    layer_valid_accuracy: list[float]
    layer_test_accuracy: list[float]
    stage_busy: list[float]
    """Share of its own time that each stage computed, 0 to 1; the rest it waited for its input."""
    cuts: list[int]
    sip_accuracy: list[list[float]]
    """Validation accuracy of every window: row first, column last; 0 below the diagonal."""
    fusion_test_accuracy: float | None = None
    """With the fusion of all layers, which is fitted after the last epoch; else None."""
    data_wait: float = 0.0
    """Share of its own time that the first stage waited for images, 0 to 1."""

    @property
    def readouts(self) -> dict[str, float]:
        """Test accuracy by the name of the readout."""
        found = {"window": self.test_accuracy, "last": self.last_test_accuracy}
        fusion = self.fusion_test_accuracy
        return found if fusion is None else {**found, "fusion": fusion}

    @property
    def has_window(self) -> bool:
        """Whether several layers classify, as in all methods but plain backpropagation."""
        return len(self.layer_loss) > 1

    @property
    def reached(self) -> str:
        """The accuracies as text."""
        layers = f" with {layer_range(self.sip_first, self.sip_last)}" if self.has_window else ""
        return (
            f"valid {self.valid_accuracy:.2f}%, test {self.test_accuracy:.2f}%{layers} "
            f"(epoch {self.epoch})"
        )


def best_record(records: Sequence[EpochRecord]) -> EpochRecord:
    """Return that of the first epoch with the best validation accuracy."""
    return max(records, key=lambda record: record.valid_accuracy)


def out_of_patience(records: Sequence[EpochRecord], patience: int | None) -> bool:
    """Return whether the validation accuracy has not become better for so many epochs."""
    if patience is None or not records:
        return False
    return records[-1].epoch - best_record(records).epoch >= patience


@dataclass(frozen=True, kw_only=True)
class IntervalRecord:
    """Means over the batches since the interval before; see `--log-every`."""

    epoch: int
    """From 1."""
    step: int
    """Batches since the run began."""
    lr: float
    """Of the newest batch and the first layer."""
    loss: float
    """Mean over the images and the layers."""
    images_per_s: float
    """Training images a second; evaluation is not counted."""
    layer_loss: list[float]

    @property
    def scalars(self) -> dict[str, float]:
        """The values for loggers, apart from those of epochs by their names."""
        means = {"loss": self.loss, "lr": self.lr, "images_per_s": self.images_per_s}
        layers = {f"layer_loss/{layer}": loss for layer, loss in enumerate(self.layer_loss)}
        return {f"batch/{name}": value for name, value in (means | layers).items()}


_ARROW = {
    "int": pa.int64(),
    "float": pa.float64(),
    "float | None": pa.float64(),
    "list[float]": pa.list_(pa.float64()),
    "list[int]": pa.list_(pa.int64()),
    "list[list[float]]": pa.list_(pa.list_(pa.float64())),
}
_SCHEMA = pa.schema(
    [(field.name, _ARROW[str(field.type)]) for field in dataclasses.fields(EpochRecord)]
)
_ADDED = (("data_wait",), ("last_valid_accuracy", "last_test_accuracy", "fusion_test_accuracy"))
"""Fields that were added last, and those before them."""
_SCHEMAS = [
    pa.schema([field for field in _SCHEMA if field.name not in sum(_ADDED[:newest], ())])
    for newest in range(len(_ADDED) + 1)
]
"""Of files that this version and earlier ones wrote."""


class Metrics:
    """The records of a run, written anew after each epoch; close it as a context manager.

    Args:
        directory: the run directory.
        tensorboard: whether TensorBoard events are written too.
    """

    def __init__(self, directory: Path, *, tensorboard: bool = True) -> None:
        self.directory = directory
        self.records: list[EpochRecord] = []
        self._events = _tensorboard(directory / "tensorboard") if tensorboard else None

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._events is not None:
            self._events.close()

    def load(self, epochs: int) -> None:
        """Read back the records of the first `epochs` epochs, to go on behind them."""
        path = self.directory / METRICS_FILE
        if path.exists():
            rows = read_metrics(path)
            self.records = [row for row in rows if row.epoch <= epochs]

    def go_back(self, epochs: int) -> None:
        """Forget all but the first `epochs` epochs, which will be trained again."""
        self.records = [row for row in self.records if row.epoch <= epochs]

    def window(self, default: tuple[int, int]) -> tuple[int, int]:
        """Return the SIP window of the newest epoch, or `default` before the first."""
        if not self.records:
            return default
        return self.records[-1].sip_first, self.records[-1].sip_last

    def append(self, record: EpochRecord) -> None:
        """Add an epoch to metrics.parquet, metrics.csv and the TensorBoard events, if any."""
        self.records.append(record)
        rows = [dataclasses.asdict(row) for row in self.records]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink, write_page_checksum=True)
        write_atomically(self.directory / METRICS_FILE, sink.getvalue())
        write_atomically(self.directory / "metrics.csv", _csv(rows).encode())
        if self._events is not None:
            for name, value in scalars(record).items():
                self._events.add_scalar(name, value, record.epoch)
            self._events.flush()

    def append_interval(self, record: IntervalRecord) -> None:
        """Add an interval to the TensorBoard events, if any; its step counts batches."""
        if self._events is not None:
            for name, value in record.scalars.items():
                self._events.add_scalar(name, value, record.step)
            self._events.flush()


def _tensorboard(folder: Path) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter  # lists of runs are read without torch

    return SummaryWriter(str(folder))


def scalars(record: EpochRecord) -> dict[str, float]:
    """Return the scalars of a record for loggers; a list becomes NAME/0, NAME/1, ..."""
    values: dict[str, float] = {}
    for name, value in dataclasses.asdict(record).items():
        if name in ("epoch", "step", "cuts", "sip_accuracy"):
            continue
        if isinstance(value, list):
            values |= {f"{name}/{position}": each for position, each in enumerate(value)}
        elif value is not None:
            values[name] = value
    return values


def read_metrics(path: Path) -> list[EpochRecord]:
    """Read the records of a metrics.parquet; UserError where it is none."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        filled = [name for name in table.column_names if name != "fusion_test_accuracy"]
        if table.schema not in _SCHEMAS or any(
            column.null_count for column in table.select(filled).columns
        ):
            raise ValueError(f"its columns are not those of {', '.join(_SCHEMA.names)}")
        records = [_record(row) for row in table.to_pylist()]
        for before, record in zip([None, *records], records, strict=False):
            _check(record, 0 if before is None else before.epoch)
        return records
    except (pa.ArrowException, IndexError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is no metrics file of a run: {reason}; move it away to go on without its rows"
        ) from error


def _record(row: dict[str, Any]) -> EpochRecord:
    """Return the record of a row, which may lack the columns that were added."""
    for split in ("valid", "test"):
        if f"last_{split}_accuracy" not in row:
            row[f"last_{split}_accuracy"] = row[f"layer_{split}_accuracy"][-1]
    return EpochRecord(**row)


def _check(record: EpochRecord, epoch_before: int) -> None:
    """Raise a ValueError where a record is none that a run could have written."""
    layers = len(record.layer_loss)
    values = dataclasses.asdict(record)
    if record.fusion_test_accuracy is None:
        del values["fusion_test_accuracy"]
    numbers = _flat(list(values.values()))
    if not all(value is not None and math.isfinite(value) for value in numbers):
        raise ValueError(f"a number of epoch {record.epoch} is missing or not finite")
    if record.epoch <= epoch_before:
        raise ValueError(f"epoch {record.epoch} comes after epoch {epoch_before}")
    if not 0 <= record.sip_first <= record.sip_last < layers:
        raise ValueError(
            f"epoch {record.epoch} has {layers} layers and the window "
            f"{record.sip_first}-{record.sip_last}"
        )


def _flat(values: list[Any]) -> list[Any]:
    """Return the numbers in nested lists."""
    return [
        number
        for value in values
        for number in (_flat(value) if isinstance(value, list) else [value])
    ]


def _csv(rows: list[dict[str, Any]]) -> str:
    """Return the rows as CSV; lists are JSON in one cell, and the SIP matrix is left out."""
    names = [name for name in rows[0] if name != "sip_accuracy"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        cells = (row[name] for name in names)
        writer.writerow([json.dumps(c) if isinstance(c, list) else c for c in cells])
    return text.getvalue()
