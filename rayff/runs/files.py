"""Atomic writes of files."""

from __future__ import annotations

import os
from pathlib import Path

_ASIDE = ".partial"


def is_aside(path: Path) -> bool:
    """Return whether a file was being written when its process ended."""
    return path.name.startswith(".") and path.name.endswith(_ASIDE)


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write aside, then rename: a reader sees the old file or the new one, never half of one."""
    aside = path.with_name(f".{path.name}{_ASIDE}")
    try:
        write_durably(aside, data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
