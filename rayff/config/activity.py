"""What the program is busy with, for a display: reading data, starting Ray, classifying images.

Whatever may take seconds says so here and knows nothing of displays.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class Activity:
    """Something that takes a while."""

    text: str
    """Such as "reading cifar10"."""
    total: int | None = None
    """Items to work on; None where they are not counted."""
    done: int = 0
    """Of these."""
    began_s: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began_s

    def advance(self, items: int = 1) -> None:
        """Count items that are done."""
        self.done += items


_under_way: list[Activity] = []


@contextmanager
def activity(text: str, total: int | None = None) -> Iterator[Activity]:
    """Say what the program does inside the block; the innermost block is shown."""
    new = Activity(text, total)
    _under_way.append(new)
    try:
        yield new
    finally:
        _under_way.remove(new)


def current_activity() -> Activity | None:
    """Return the activity of the innermost block, if any; callable from another thread."""
    return next(iter(_under_way[-1:]), None)
