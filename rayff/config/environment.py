"""Environment variables that libraries read when they are imported or first used."""

from __future__ import annotations

import os

_RAY = {
    # Ray prints pages about a dead worker or node; the run says it in one sentence.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died|has been marked dead",
    "RAY_COLOR_PREFIX": "0",
    # Of a stage that dies with chunks in flight the driver reads one error, and reports it.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def set_ray_defaults() -> None:
    """Set what Ray reads when it is imported; values of the user's own stay."""
    for name, value in _RAY.items():
        os.environ.setdefault(name, value)


def set_torch_defaults() -> None:
    """Set what torch reads when it first allocates; a value of the user's own stays.

    Large tensors come and go in each step: on huge pages they cost a third as much.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
