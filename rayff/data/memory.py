"""Memory that this process may use: of the machine, or of the innermost cgroup with a limit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil

CGROUP = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def memory_bytes() -> tuple[int, int]:
    """Return the total and the free memory, within the limits of the cgroups (v2 or v1)."""
    system = psutil.virtual_memory()
    total, free = system.total, system.available
    for folder, maximum, current, prefix in _groups():
        with suppress(OSError, ValueError):  # not there, or "max"
            limit = int((folder / maximum).read_text())
            stat = dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))
            cached = sum(int(stat.get(f"{prefix}{k}_file", 0)) for k in ("active", "inactive"))
            unused = limit - int((folder / current).read_text()) + cached
            if limit < system.total:
                total, free = min(total, limit), min(free, max(0, unused))
    return total, free


def _groups() -> Iterator[tuple[Path, str, str, str]]:
    """Yield the folder of each cgroup that this process is in, with the names of its files."""
    of_version = {
        "": (CGROUP, "memory.max", "memory.current", ""),
        "memory": (CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    }
    inside = {kind: PurePosixPath("/") for kind in of_version}
    with suppress(OSError):
        for line in MEMBERSHIP.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            for kind in kinds.split(","):
                if kind in inside:
                    inside[kind] = PurePosixPath(path)
    for kind, (root, *names) in of_version.items():
        for group in (inside[kind], *inside[kind].parents):
            maximum, current, prefix = names
            yield root / group.relative_to("/"), maximum, current, prefix
