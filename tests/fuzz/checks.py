"""Promise of any file: it is read as it is, or refused in one sentence, and no more."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings

from rayff.config.errors import UserError
from tests.helpers.mistakes import tree

T = TypeVar("T")

SECONDS = 2.0
"""Processor time to read or refuse a file, at most."""

LONG_RUN = "thorough"
"""The Hypothesis profile that tries new cases, many times as many."""


def cases(number: int) -> settings:
    """Return settings: always the same few cases, and up to so many new ones in a long run."""
    long = settings.get_current_profile_name() == LONG_RUN
    return settings(
        max_examples=30 * number if long else number // 4,
        derandomize=not long,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def read_or_refused(read: Callable[[], T], folder: Path) -> T | None:
    """Return what was read, or None for a UserError of one sentence.

    Nothing else may be raised, nothing be written below `folder`, and time stays bounded; memory
    does by the limit that the package's fixture sets.
    """
    before, start = tree(folder), time.process_time()
    result: Any = None
    try:
        result = read()
    except UserError as error:
        message = str(error)
        assert len(message) > 20, message
        assert "\n" not in message
        assert "Traceback" not in message
    assert time.process_time() - start < SECONDS
    assert tree(folder) == before
    return result
