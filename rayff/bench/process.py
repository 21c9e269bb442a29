"""Work in a process of its own, and the most memory that some work holds."""

from __future__ import annotations

import ctypes
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

import torch

from rayff.config.errors import UserError

T = TypeVar("T")

_MMAP_THRESHOLD = -3
"""Of glibc's mallopt: blocks from that size on are not kept when they are freed."""
_LARGE = 2**16


def in_own_process(what: str, work: Callable[..., T], *args: Any, keep_freed: bool = True) -> T:
    """Return what `work` returns in a new process.

    Args:
        what: for the message where the process is killed.
        work: a function of a module.
        args: of it.
        keep_freed: False where `work` calls peak_bytes, which is exact then.
    """
    spawn = multiprocessing.get_context("spawn")
    begin = None if keep_freed else _keep_no_freed_memory
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=begin) as pool:
        try:
            return pool.submit(work, *args).result()
        except BrokenProcessPool:
            raise UserError(
                f"{what} was killed, perhaps for lack of memory; try a smaller --batch-size"
            ) from None


def check_peaks(device: torch.device) -> None:
    """Raise a UserError where the peak of a process cannot be measured."""
    if device.type == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise UserError("the peak of a process can be measured on Linux alone; use --device cuda")


def peak_bytes(work: Callable[[], object], device: torch.device) -> float:
    """Return the most bytes that some work holds at a time, on top of those held before it.

    On a GPU by torch's allocator. On a CPU by the system's count of the process's resident pages.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    resident = _status("VmRSS")
    work()
    return max(0.0, _status("VmHWM") - resident)


def _keep_no_freed_memory() -> None:
    """Let the C library give freed blocks back to the system, instead of keeping them for later.

    What the system counts is what is in use then; training is slower.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc
        library.mallopt(_MMAP_THRESHOLD, _LARGE)


def _status(name: str) -> float:
    """Return a count of this process, in bytes."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "Linux has it"
    return 1024.0 * int(found[1])
