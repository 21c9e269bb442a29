"""What a split is read from: blocks of encoded images, and the labels of all of them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from rayff.config.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

Rows = NDArray[np.int64]

Encoded = list[bytes | None]
"""Files of images, in the order of their rows; None where a row has none."""

MAX_ROWS_A_READ = 2048
BYTES_A_READ = 2**24
"""Encoded images of a table that are held at a time."""


@dataclass(frozen=True, kw_only=True)
class Location:
    """A file or folder in a file system of pyarrow; it can be sent to another process."""

    files: fs.FileSystem
    path: str
    shown: str
    """As the user would write it."""

    def __truediv__(self, name: str) -> Location:
        return Location(
            files=self.files,
            path=f"{self.path.rstrip('/')}/{name}",
            shown=f"{self.shown.rstrip('/')}/{name}",
        )

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def kind(self) -> fs.FileType:
        """Whether it is a file, a folder or nothing."""
        return self.files.get_file_info(self.path).type

    def listing(self, *, recursive: bool = False) -> list[fs.FileInfo]:
        """Return what a folder holds, sorted by path, without hidden names; nothing without one.

        Raises:
            UserError: the file system refuses it.
        """
        if isinstance(self.files, fs.LocalFileSystem) and not os.path.isdir(self.path):
            return []  # also for names that no folder can have
        selector = fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        start = len(self.path.rstrip("/")) + 1
        try:
            infos = self.files.get_file_info(selector)
        except (OSError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.shown} cannot be listed ({reason}); check its name and your access"
            ) from error
        found = [
            info
            for info in infos
            if not any(_hidden(part) for part in info.path[start:].split("/"))
        ]
        return sorted(found, key=lambda info: info.path)

    def read(self) -> bytes:
        """Return the content of a file."""
        with self.files.open_input_stream(self.path) as stream:
            return bytes(stream.read())


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


@dataclass(frozen=True, kw_only=True)
class Block(ABC):
    """Consecutive rows of a split that are read together; it can be sent to another process."""

    num_rows: int

    @property
    @abstractmethod
    def where(self) -> Location:
        """The file or folder that holds it."""

    @abstractmethod
    def take(self, rows: Rows) -> Block:
        """Return a block of some rows, by ascending numbers in this one."""

    @abstractmethod
    def images(self) -> Iterator[Encoded]:
        """Yield the encoded images of all rows in order, some at a time.

        Raises:
            UserError: the file is damaged or gone.
        """

    @abstractmethod
    def place(self, row: int) -> str:
        """Return where a row is, for messages; rows of the block are counted from 0."""


@dataclass(frozen=True, kw_only=True)
class TableBlock(Block):
    """Rows of a file that is a table, or of a part of it."""

    location: Location
    column: str
    """Path of the encoded images."""
    first_row: int = 0
    """Of the part, counted in the file."""
    rows: tuple[int, ...] | None = None
    """Rows of the part that are read; None for all."""

    @property
    def where(self) -> Location:
        """The file."""
        return self.location

    def take(self, rows: Rows) -> Self:
        """Return a block of some rows, by ascending numbers in this one."""
        own = rows if self.rows is None else np.array(self.rows)[rows]
        return replace(self, num_rows=len(own), rows=tuple(own.tolist()))

    def place(self, row: int) -> str:
        """Return file and row, counted from 0 in the file."""
        in_part = row if self.rows is None else self.rows[row]
        return f"{self.location.shown}, row {self.first_row + in_part} (counted from 0)"

    @property
    def chosen(self) -> Rows | None:
        """The rows as an array."""
        return None if self.rows is None else np.array(self.rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """The rows of one split."""

    blocks: Sequence[Block]
    labels: Any
    """Array of pyarrow, (N,): labels as they are written, in the order of the blocks' rows."""
    names: tuple[str, ...] | None = None
    """Names of the classes that whole numbers stand for, where the data names them."""

    @property
    def num_rows(self) -> int:
        """Number of rows of all blocks, N."""
        return sum(block.num_rows for block in self.blocks)

    def take(self, rows: Rows) -> Source:
        """Return some rows, by ascending numbers; blocks that hold none of them are left out."""
        blocks: list[Block] = []
        first = 0
        for block in self.blocks:
            inside = rows[
                np.searchsorted(rows, first) : np.searchsorted(rows, first + block.num_rows)
            ]
            if len(inside) == block.num_rows:
                blocks.append(block)
            elif len(inside):
                blocks.append(block.take(inside - first))
            first += block.num_rows
        return Source(blocks=blocks, labels=self.labels.take(pa.array(rows)), names=self.names)

    def place(self, row: int) -> str:
        """Return where a row is, for messages."""
        for block in self.blocks:
            if row < block.num_rows:
                return block.place(row)
            row -= block.num_rows
        raise IndexError(row)


def rows_a_read(row_bytes: int) -> int:
    """Return how many rows of a size are read at a time."""
    return max(1, min(MAX_ROWS_A_READ, BYTES_A_READ // max(1, row_bytes)))


def taken(values: Any, rows: Rows | None, first: int) -> Any:
    """Return the values of the rows that are among them.

    Args:
        values: array of pyarrow.
        rows: ascending numbers in the file or row group; None for all.
        first: number of the first value.
    """
    if rows is None:
        return values
    inside = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + len(values))]
    return values.take(pa.array(inside - first))
