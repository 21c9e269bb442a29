"""Image data sets in the Hugging Face layout: Parquet files of encoded images and labels.

A folder (or its subfolder `data`) holds one file a split, `train.parquet`, or numbered shards,
`train-00000-of-00004.parquet`. Rows are counted from 0, in each file, in every message.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rayff.config.errors import UserError
from rayff.config.text import is_plain
from rayff.data.images import ImageSet, decode_image, is_grey
from rayff.models.architecture import IMAGE_SIZE

MAX_CLASSES = 2**16
"""Classes that labels without names may number at most; a label beyond is a mistake."""

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "fine_label")

SPLIT_OF_PREFIX = {
    "train": "train",
    "validation": "valid",
    "valid": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
"""The split that a file's name announces."""

_FILE_NAME = re.compile(
    rf"(?P<prefix>{'|'.join(SPLIT_OF_PREFIX)})"
    r"(-(?P<shard>\d+)-of-(?P<total>\d+)(-[0-9a-f]+)?)?\.parquet"
)
_ROWS_A_READ = 2048
_ROWS_A_TASK = 128
_FEW_BYTES = 4096
"""Images of fewer on average are decoded by one thread: several would take twice the time, waiting
for Python's lock (60,000 of 32x32 pixels: 10 s by two threads, 5 s by one)."""


def find_splits(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each split ("train", "valid", "test") under `folder`, shards in order.

    Raises:
        UserError: a shard is missing, or two sets of files claim the same split.
    """
    splits: dict[str, dict[tuple[Path, str, str | None], list[tuple[int, Path]]]] = {}
    for path in parquet_files(folder):
        if match := _FILE_NAME.fullmatch(path.name):
            key = (path.parent, match["prefix"], match["total"])
            sets = splits.setdefault(SPLIT_OF_PREFIX[match["prefix"]], {})
            sets.setdefault(key, []).append((int(match["shard"] or 0), path))
    return {
        split: _only_set(split, list(splits[split].values()))
        for split in ("train", "valid", "test")
        if split in splits
    }


def parquet_files(folder: Path) -> list[Path]:
    """Return every Parquet file in `folder` and in its subfolder `data`, sorted by name."""
    places = [place for place in (folder, folder / "data") if os.path.isdir(place)]
    return [path for place in places for path in sorted(place.glob("*.parquet"))]


def class_names(files: Sequence[Path]) -> tuple[str, ...] | None:
    """Return the names of the classes that Hugging Face's metadata of the first file holds.

    Raises:
        UserError: a name is no plain text.
    """
    with _opened(files[0]) as file:
        schema = file.schema_arrow
        label_column = _label_column(schema, files[0])
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[label_column]["names"]
    except (KeyError, RecursionError, TypeError, ValueError):
        return None
    if not isinstance(names, list) or not names:
        return None
    for number, name in enumerate(names):
        if not is_plain(str(name)):
            raise UserError(
                f"{files[0]} names class {number} {str(name)!a}, which is no plain text: correct "
                "its metadata"
            )
    return tuple(str(name) for name in names)


def image_channels(files: Sequence[Path]) -> int:
    """Return 1 if the first image is grey, else 3."""
    with _opened(files[0]) as file:
        column = _image_column(file.schema_arrow, files[0])
        first = next(file.iter_batches(batch_size=1, columns=[column]), None)
    if first is None or not len(first):
        raise _unequal(files[0])
    data = _image_bytes(first)[0].as_py()
    if data is None:
        raise _row_error(files[0], 0, "the image is null")
    try:
        return 1 if is_grey(data) else 3
    except ValueError as error:
        raise _row_error(files[0], 0, f"the bytes are not an image ({error})") from error


def read_labels(files: Sequence[Path], num_classes: int | None) -> npt.NDArray[np.int64]:
    """Read and check the labels of a split, shape (N,).

    Raises:
        UserError: a label is null, negative or not below `num_classes`; a file has no rows, no
            label column of integers, or is no Parquet file.
    """
    parts = []
    for path in files:
        with _opened(path) as file:
            column = file.read(columns=[_label_column(file.schema_arrow, path)]).column(0)
            if len(column) != file.metadata.num_rows:
                raise _unequal(path)
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy()))
            raise _row_error(path, row, "the label is null")
        values = column.to_numpy()
        labels = values.astype(np.int64)  # a uint64 that is too large turns negative
        limit = MAX_CLASSES if num_classes is None else num_classes
        outside = (labels < 0) | (labels >= limit)
        if outside.any():
            row = int(np.argmax(outside))
            raise _row_error(path, row, f"the label is {values[row]}, expected 0 to {limit - 1}")
        parts.append(labels)
    return np.concatenate(parts)


def read_split(files: Sequence[Path], *, channels: int, num_classes: int | None) -> ImageSet:
    """Read the images and labels of a split into one array, decoding large ones on all cores.

    Raises:
        UserError: as for `read_labels`; an image is null or no image, or there is no such column.
    """
    labels = read_labels(files, num_classes)
    try:
        images = np.empty((len(labels), channels, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    except MemoryError as error:
        raise UserError(
            f"the {len(labels)} images of {files[0]} (and its other shards) do not fit into this "
            "machine's memory: give fewer"
        ) from error
    start = 0
    with ThreadPoolExecutor(_num_cores()) as pool:
        for path in files:
            start += _read_images(path, images[start:], pool)
    return ImageSet(images=images, labels=labels)


def _read_images(path: Path, images: npt.NDArray[np.uint8], pool: ThreadPoolExecutor) -> int:
    """Decode the images of one file into the head of `images`, and return their number."""
    channels = images.shape[1]
    row = 0

    def decode_rows(values: Any, first_row: int) -> None:
        for index, value in enumerate(values, start=first_row):
            data = value.as_py()
            if data is None:
                raise _row_error(path, index, "the image is null")
            try:
                images[index] = decode_image(data, channels)
            except ValueError as error:
                raise _row_error(path, index, f"the bytes are not an image ({error})") from error

    with _opened(path) as file:
        column = _image_column(file.schema_arrow, path)
        for batch in file.iter_batches(batch_size=_ROWS_A_READ, columns=[column]):
            values = _image_bytes(batch)
            if row + len(values) > file.metadata.num_rows:
                raise _unequal(path)
            offsets = range(0, len(values), _ROWS_A_TASK)
            slices = (values.slice(offset, _ROWS_A_TASK) for offset in offsets)
            each = map if values.nbytes < _FEW_BYTES * len(values) else pool.map
            # in order, so that the first bad row is the one that is reported
            for _ in each(decode_rows, slices, (row + offset for offset in offsets)):
                pass
            row += len(values)
        if row != file.metadata.num_rows:
            raise _unequal(path)
    return row


def _only_set(split: str, sets: list[list[tuple[int, Path]]]) -> list[Path]:
    """Return the files of the one set of shards, in order, after checking that it is whole."""
    files = [path for shards in sets for _, path in sorted(shards)]
    numbers = sorted(shard for shards in sets for shard, _ in shards)
    if len(sets) > 1 or len(set(numbers)) < len(numbers):
        raise UserError(
            f"more than one set of files for the {split} split: "
            f"{', '.join(str(path) for path in files)}; keep one of them"
        )
    match = _FILE_NAME.fullmatch(files[0].name)
    total = int(match["total"] or 1) if match else 1
    there = [number for number in numbers if number < total]
    num_missing = total - len(there)
    if match and match["shard"] and num_missing:
        # not by listing all: a name may speak of any number of shards
        missing = next(n for n in range(total) if n >= len(there) or there[n] != n)
        name = f"{match['prefix']}-{missing:0{len(match['shard'])}}-of-{match['total']}.parquet"
        raise UserError(
            f"{files[0].parent} has {len(there)} of the {total} shards of its {split} split: "
            f"{name} is missing{_and_more(num_missing - 1)}; add it"
        )
    return files


def _and_more(number: int) -> str:
    return f", and {number} more" if number else ""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a Parquet file with rows; what pyarrow finds wrong while it is open names the file."""
    if not path.is_file():  # also a pipe, which would be waited for
        raise UserError(f"{path} cannot be read as a Parquet file: it is no file; replace it")
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows == 0:
                raise UserError(f"{path} has no rows: give a file that holds images")
            yield file
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: of a name
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} cannot be read as a Parquet file ({reason}): it may be cut short, or "
            "something else; fetch or write it again"
        ) from error


def _image_column(schema: Any, path: Path) -> str:
    """Return the column to read: the encoded bytes alone, without the path."""
    name = _column(schema, path, IMAGE_COLUMNS, "image")
    kind = schema.field(name).type
    if _is_binary(kind):
        return name
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        if _is_binary(kind.field("bytes").type):
            return f"{name}.bytes"
    raise UserError(
        f"{path}: the column {name!r} is of type {kind}, expected encoded images as "
        "struct<bytes: binary, path: string> or binary"
    )


def _label_column(schema: Any, path: Path) -> str:
    name = _column(schema, path, LABEL_COLUMNS, "label")
    kind = schema.field(name).type
    if not pa.types.is_integer(kind):
        raise UserError(
            f"{path}: the label column {name!r} is of type {kind}, expected an integer type; "
            "number the classes from 0"
        )
    return name


def _column(schema: Any, path: Path, names: tuple[str, ...], role: str) -> str:
    for name in names:
        if schema.names.count(name) > 1:
            raise UserError(f"{path} has more than one column {name!r}: drop all but one")
        if name in schema.names:
            return name
    raise UserError(
        f"{path} has no {role} column: expected {' or '.join(map(repr, names))}, "
        f"the columns there are {', '.join(map(repr, schema.names))}"
    )


def _image_bytes(batch: Any) -> Any:
    """Return the only column of a batch as an array of binary values, null where they are."""
    column = batch.column(0)
    # flatten, unlike field, keeps the nulls of the struct itself
    return column.flatten()[0] if pa.types.is_struct(column.type) else column


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _unequal(path: Path) -> UserError:
    return UserError(
        f"{path} is damaged: its columns do not have the rows that it claims; fetch or write it "
        "again"
    )


def _row_error(path: Path, row: int, problem: str) -> UserError:
    return UserError(f"{path}, row {row} (counted from 0): {problem}; correct or drop that row")


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
