"""Disks that are full, and writes that are cut short."""

import errno
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rayff.runs.files import write_durably

Write = Callable[[Path, "bytes | memoryview"], None]

INTERRUPTIONS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
    KeyboardInterrupt(),
]


def interrupted(number: int, error: BaseException) -> Write:
    """Return a write_durably whose call `number` (from 0) leaves half a file and fails."""
    calls = 0

    def write(path: Path, data: bytes | memoryview) -> None:
        nonlocal calls
        calls += 1
        if calls == number + 1:
            path.write_bytes(bytes(data)[: len(data) // 2])
            raise error
        write_durably(path, data)

    return write


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a disk of that size; skip the test where that is not allowed."""
    folder.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    command = [mount or "", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not (mount and unmount) or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run([unmount, str(folder)], check=True)
