"""Environment variables: those that libraries read, and the one of this package."""

from __future__ import annotations

import os
from pathlib import Path

from rayff.config.errors import UserError

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


def cache_dir() -> Path:
    """Return the cache folder of this machine: RAYFF_CACHE_DIR or ~/.cache/rayff.

    Raises:
        UserError: there is no home folder.
    """
    named = os.environ.get("RAYFF_CACHE_DIR")
    if named:
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rayff"
    except RuntimeError as error:
        raise UserError(
            "there is no home folder for the cache: set HOME, or RAYFF_CACHE_DIR, to a "
            "folder that can be written"
        ) from error
