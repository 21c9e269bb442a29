"""Splits as folders of image files, a folder for each class: train/cat/1.jpg."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
from pyarrow import fs

from rayff.config.errors import UserError
from rayff.config.text import plural
from rayff.data.images import SUFFIXES
from rayff.data.sources import Block, Encoded, Location, Rows, Source

FILES_A_BLOCK = 1024
_FILES_A_READ = 64


@dataclass(frozen=True, kw_only=True)
class Files(Block):
    """Some image files below a folder."""

    folder: Location
    paths: tuple[str, ...]
    """Below the folder."""

    @property
    def where(self) -> Location:
        """The folder."""
        return self.folder

    def take(self, rows: Rows) -> Files:
        """Return some files."""
        return replace(self, num_rows=len(rows), paths=tuple(self.paths[row] for row in rows))

    def images(self) -> Iterator[Encoded]:
        """Yield the content of the files, some at a time."""
        for start in range(0, self.num_rows, _FILES_A_READ):
            yield [self._read(path) for path in self.paths[start : start + _FILES_A_READ]]

    def _read(self, path: str) -> bytes:
        try:
            return (self.folder / path).read()
        except OSError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"cannot read the image {self.folder.shown}/{path} ({reason}): restore it"
            ) from error

    def place(self, row: int) -> str:
        """Return the file's path."""
        return f"{self.folder.shown}/{self.paths[row]}"


def read_class_folders(folder: Location) -> tuple[Source, tuple[str, ...]] | None:
    """Return the images below folders of classes, and notes; None where there are none.

    The label of an image is the name of the folder in `folder` that it lies below.
    """
    paths: list[str] = []
    others: list[str] = []
    loose: list[str] = []
    start = len(folder.path.rstrip("/")) + 1
    for info in folder.listing(recursive=True):
        path = info.path[start:]
        if info.type == fs.FileType.Directory:
            continue
        # a pipe would be waited for
        is_image = info.type == fs.FileType.File and path.lower().endswith(SUFFIXES)
        if "/" in path:
            (paths if is_image else others).append(path)
        elif is_image:
            loose.append(path)
    if not paths:
        return None
    labels = pa.array([path.partition("/")[0] for path in paths])
    where = f" below {folder.shown}"
    notes = (
        *left_out(others, "no image files", where),
        *left_out(loose, "in no folder of a class", where),
    )
    return Source(blocks=_blocks(folder, paths), labels=labels), notes


def left_out(files: Sequence[str], why: str, where: str = "") -> tuple[str, ...]:
    """Return a note on files that are not read, if there are any."""
    if not files:
        return ()
    return (f"{plural(len(files), 'file')}{where} left out: {why} ({files[0]})",)


def _blocks(folder: Location, paths: Sequence[str]) -> list[Files]:
    parts = [
        tuple(paths[start : start + FILES_A_BLOCK])
        for start in range(0, len(paths), FILES_A_BLOCK)
    ]
    return [Files(num_rows=len(part), folder=folder, paths=part) for part in parts]
