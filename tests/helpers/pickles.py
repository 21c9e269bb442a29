"""Pickles that show when they are loaded."""

from pathlib import Path
from typing import Any


class MarkerOnLoad:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.mkdir, (self.marker,)
