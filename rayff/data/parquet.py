"""Splits in Parquet files, row group by row group.

Rows are counted from 0, in each file, in every message.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from rayff.config.errors import UserError
from rayff.data.columns import SPLIT_COLUMN, Choice, choose_columns
from rayff.data.sources import (
    Block,
    Encoded,
    Location,
    Rows,
    Source,
    TableBlock,
    rows_a_read,
    taken,
)


@dataclass(frozen=True, kw_only=True)
class RowGroup(TableBlock):
    """A row group of a Parquet file, or some rows of it."""

    number: int
    group_rows: int
    """Rows of the whole group."""

    def images(self) -> Iterator[Encoded]:
        """Yield the encoded images, some at a time."""
        chosen, seen = self.chosen, 0
        with opened(self.location) as file:
            size = file.metadata.row_group(self.number).total_byte_size // self.group_rows
            for batch in file.iter_batches(
                batch_size=rows_a_read(size), row_groups=[self.number], columns=[self.column]
            ):
                yield taken(image_bytes(batch.column(0)), chosen, seen).to_pylist()
                seen += len(batch)
        if seen != self.group_rows:
            raise _unequal(self.location)


def read_source(
    files: Sequence[Location],
    choice: Choice,
    preferred_labels: Sequence[str] = (),
    split_values: Sequence[str] | None = None,
) -> tuple[Source, tuple[str, ...]]:
    """Return the rows of a split, and notes on the columns that were chosen.

    Args:
        files: of the split, in order; those without rows are skipped where others have some.
        choice: columns that the user named.
        preferred_labels: see `choose_columns`.
        split_values: words of the column `split` whose rows belong to the split; None for all.

    Raises:
        UserError: a file is damaged, has no rows or not the columns; a label is null.
    """
    blocks: list[Block] = []
    labels: list[Any] = []
    names: tuple[str, ...] | None = None
    notes: dict[str, None] = {}
    for location in files:
        with opened(location) as file:
            if not file.metadata.num_rows:
                continue
            schema = file.schema_arrow
            columns = choose_columns(schema, location.shown, choice, preferred_labels)
            notes |= dict.fromkeys(columns.notes)
            names = shared_names(names, class_names(schema, columns.label), location)
            wanted = [columns.label, *([] if split_values is None else [SPLIT_COLUMN])]
            table = file.read(columns=wanted)
            if len(table) != file.metadata.num_rows:
                raise _unequal(location)
            found = table.column(columns.label)
            chosen = None
            if split_values is not None:
                words = table.column(SPLIT_COLUMN).to_pylist()
                chosen = np.flatnonzero([word in split_values for word in words])
                found = found.take(pa.array(chosen))
            blocks += _row_groups(file.metadata, location, columns.image, chosen)
            labels.append(found)
    if not blocks:
        raise UserError(f"{files[0].shown} has no rows: give a file that holds images")
    return Source(blocks=blocks, labels=_joined(labels, files), names=names), tuple(notes)


def _joined(labels: Sequence[Any], files: Sequence[Location]) -> Any:
    """Return the labels of several files as one array, of the widest type."""
    plain = [
        part.cast(part.type.value_type) if pa.types.is_dictionary(part.type) else part
        for part in labels
    ]
    try:
        tables = [pa.table({"label": part}) for part in plain]
        return pa.concat_tables(tables, promote_options="permissive").column(0)
    except pa.ArrowException as error:
        kinds = ", ".join(sorted({str(part.type) for part in plain}))
        raise UserError(
            f"the labels of {files[0].shown} and its other shards are of several types ({kinds}): "
            "write them as one type"
        ) from error


def _row_groups(
    metadata: Any, location: Location, column: str, chosen: Rows | None
) -> Iterator[RowGroup]:
    first = 0
    for number in range(metadata.num_row_groups):
        count = metadata.row_group(number).num_rows
        rows = None
        if chosen is not None:
            rows = tuple((chosen[(chosen >= first) & (chosen < first + count)] - first).tolist())
        if count and rows != ():
            yield RowGroup(
                num_rows=count if rows is None else len(rows),
                location=location,
                number=number,
                first_row=first,
                group_rows=count,
                column=column,
                rows=rows,
            )
        first += count


def split_words(location: Location) -> list[str] | None:
    """Return the words in the column `split` of a file, or None where there is no such column."""
    with opened(location) as file:
        if SPLIT_COLUMN not in file.schema_arrow.names:
            return None
        return [str(word) for word in file.read(columns=[SPLIT_COLUMN]).column(0).unique()]


def class_names(schema: Any, label_column: str) -> tuple[str, ...] | None:
    """Return the names of the classes that Hugging Face's metadata holds."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[label_column]["names"]
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    if not isinstance(names, list) or not names:
        return None
    return tuple(str(name) for name in names)


def shared_names(
    before: tuple[str, ...] | None, own: tuple[str, ...] | None, location: Location
) -> tuple[str, ...] | None:
    """Return the names of the classes of a split, of which one more file is read.

    Raises:
        UserError: the file names them otherwise than those before: its numbers mean other classes.
    """
    if None not in (before, own) and before != own:
        raise UserError(
            f"{location.shown} names its classes otherwise than the files of its split before it, "
            "so that one number means several classes: write all of them with the same names in "
            "one order"
        )
    return before or own


@contextmanager
def opened(location: Location) -> Iterator[Any]:
    """Open a Parquet file; what pyarrow finds wrong while it is open names the file."""
    if location.kind != fs.FileType.File:  # also a pipe, which would be waited for
        raise UserError(
            f"{location.shown} cannot be read as a Parquet file: it is no file; replace it"
        )
    try:
        with pq.ParquetFile(location.path, filesystem=location.files) as file:
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: of a name
        reason = " ".join(str(error).split())
        raise UserError(
            f"{location.shown} cannot be read as a Parquet file ({reason}): it may be cut short, "
            "or something else; fetch or write it again"
        ) from error


def image_bytes(column: Any) -> Any:
    """Return a column as an array of binary values, null where they are."""
    # flatten, unlike field, keeps the nulls of the struct itself
    if pa.types.is_struct(column.type):
        return column.flatten()[column.type.get_field_index("bytes")]
    return column


def _unequal(location: Location) -> UserError:
    return UserError(
        f"{location.shown} is damaged: its columns do not have the rows that it claims; fetch or "
        "write it again"
    )
