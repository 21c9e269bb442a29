"""A bound of the memory that a hostile file may take."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOM = 2**31
"""Bytes of address space beyond those in use: reading by a header that claims more fails."""


@pytest.fixture(autouse=True)
def _bounded_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
