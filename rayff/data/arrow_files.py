"""Splits in the Arrow files that `datasets` of Hugging Face writes with save_to_disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rayff.config.errors import UserError
from rayff.data.columns import Choice, choose_columns
from rayff.data.parquet import class_names, image_bytes, shared_names
from rayff.data.sources import Block, Encoded, Location, Source, TableBlock, rows_a_read, taken

DATASETS = "dataset_dict.json"
"""File that lists the splits; each is a folder."""
STATE = "state.json"
"""File in a split's folder that lists its Arrow files."""


@dataclass(frozen=True, kw_only=True)
class ArrowFile(TableBlock):
    """An Arrow file of record batches."""

    def images(self) -> Iterator[Encoded]:
        """Yield the encoded images, some at a time."""
        name = self.column.partition(".")[0]
        chosen, first = self.chosen, 0
        with _opened(self.location) as reader:
            for batch in reader:
                count = rows_a_read(batch.nbytes // max(1, len(batch)))
                for start in range(0, len(batch), count):
                    part = image_bytes(batch.column(name).slice(start, count))
                    yield taken(part, chosen, first).to_pylist()
                    first += len(part)


def saved_splits(folder: Location) -> list[str] | None:
    """Return the names of the splits that save_to_disk wrote, or None where it did not."""
    names = {info.base_name for info in folder.listing()}
    if DATASETS not in names:
        return None
    return [str(name) for name in _json(folder / DATASETS).get("splits", [])]


def read_saved(
    folder: Location, choice: Choice, preferred_labels: Sequence[str] = ()
) -> tuple[Source, tuple[str, ...]]:
    """Return the rows of a split's folder, and notes on the columns that were chosen.

    Raises:
        UserError: a file is damaged or missing, or has not the columns.
    """
    state = _json(folder / STATE)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise UserError(
            f"{folder.shown} is a selection of rows: call flatten_indices() before save_to_disk"
        )
    blocks: list[Block] = []
    labels: list[Any] = []
    names: tuple[str, ...] | None = None
    notes: dict[str, None] = {}
    for entry in state.get("_data_files", []):
        location = folder / str(entry.get("filename"))
        with _opened(location) as reader:
            columns = choose_columns(reader.schema, location.shown, choice, preferred_labels)
            notes |= dict.fromkeys(columns.notes)
            names = shared_names(names, class_names(reader.schema, columns.label), location)
            found = [batch.column(columns.label) for batch in reader]
        count = sum(map(len, found))
        labels += found
        if count:
            blocks.append(ArrowFile(num_rows=count, location=location, column=columns.image))
    if not blocks:
        raise UserError(f"{folder.shown} has no rows: give a data set that holds images")
    return Source(blocks=blocks, labels=pa.chunked_array(labels), names=names), tuple(notes)


def _json(location: Location) -> dict[str, Any]:
    try:
        data = json.loads(location.read())
    except (OSError, RecursionError, ValueError) as error:
        raise _damaged(location, error) from error
    if not isinstance(data, dict):
        raise _damaged(location, "it is no JSON object")
    return data


@contextmanager
def _opened(location: Location) -> Iterator[Any]:
    try:
        with location.files.open_input_file(location.path) as file:
            yield pa.ipc.open_stream(file)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(location, error) from error


def _damaged(location: Location, error: object) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(
        f"{location.shown} cannot be read ({reason}): write it again with save_to_disk"
    )
