"""Processors, memory and limits of this machine, as this process may use them."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import psutil

from rayff.doctor.check import CheckResult, fails, note, ok, size, slow

CGROUP = Path("/sys/fs/cgroup")
SHARED_MEMORY = Path("/dev/shm")

ACTOR_BYTES = 250 * 2**20
"""What an actor with torch takes before it has layers."""
STORE_SHARE = 0.3
"""Share of the free memory that Ray gives its object store."""
STORE_CAP = 10 * 10**9
"""What /dev/shm must hold of it, at most: Ray asks for no more where less is there."""
KILL_SHARE = 0.95
"""Of the memory in use, from which on Ray kills workers."""
MOST_NICE = 19
MANY_FILES, FEW_FILES = 8192, 1024
"""Open files a process: what Ray recommends, and what is usual at the least."""


def cpus() -> CheckResult:
    """Compare the processors here with those that this process may use."""
    there = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    quota = cpu_quota()
    usable = min(affinity, there if quota is None else quota)
    load = os.getloadavg()[0]
    found = f"{usable:g} of {there} CPUs for this process, load {load:.1f}"
    if affinity < min(there, math.inf if quota is None else quota):
        return slow(
            f"{found}: Ray does not see that only {affinity} are allowed (affinity)",
            f"give trainings --stages and --cpus-per-stage of {affinity} CPUs together, or start "
            f"Ray with ray start --head --num-cpus {affinity} and set RAY_ADDRESS",
        )
    if usable < 1:
        return slow(f"{found} (a limit of its cgroup)", "give the container one CPU or more")
    return ok(found)


def cpu_quota() -> float | None:
    """Return how many CPUs the cgroup allows, or None for no limit."""
    for file, parts in (
        ("cpu.max", None),
        ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
    ):
        try:
            words = (CGROUP / file).read_text().split()
            if parts is not None:
                words += (CGROUP / parts).read_text().split()
            quota, period = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):
            continue
        return quota / period if quota > 0 and period > 0 else None
    return None


def niceness() -> CheckResult:
    """Tell whether other work leaves Ray's workers, which are nicer, enough of the CPUs.

    A local Ray adds the workers' niceness to that of this process, up to what a system knows.
    """
    there, own = os.cpu_count() or 1, psutil.Process().nice()
    said = os.environ.get("RAY_worker_niceness", "")
    workers = min(own + (int(said) if re.fullmatch("-?[0-9]+", said) else 15), MOST_NICE)
    busy = psutil.cpu_percent(interval=0.5) / 100 * there
    found = f"Ray's workers run at nice {workers}, this process at {own}"
    if busy > there / 2 and workers > own:
        return slow(
            f"{found}, and other work uses {busy:.1f} of {there} CPUs: workers get what is left",
            "stop the other work, or set RAY_worker_niceness=0 where Ray is started",
        )
    if own > 0:
        return slow(f"{found}: other work goes first", "start it without nice")
    return ok(f"{found}; {busy:.1f} of {there} CPUs are in use")


def memory() -> CheckResult:
    """Tell what memory is free."""
    total, available = memory_bytes()
    found = f"{size(available)} of {size(total)} free"
    if available < total * (1 - KILL_SHARE):
        return fails(
            f"{found}: Ray kills workers where more than {KILL_SHARE:.0%} is in use",
            "end other programs, or use a machine with more memory",
        )
    if available < 8 * ACTOR_BYTES:
        return slow(
            f"{found}; an actor takes about {size(ACTOR_BYTES)} beside its layers",
            "use one or two --stages and a small --width, or free memory",
        )
    return ok(found)


def memory_bytes() -> tuple[int, int]:
    """Return how much memory this process may use, and how much of that is free."""
    system = psutil.virtual_memory()
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit = int((CGROUP / limit_file).read_text())
            used = int((CGROUP / used_file).read_text())
        except (OSError, ValueError):
            continue
        if limit < system.total:
            return limit, min(max(0, limit - used), system.available)
    return system.total, system.available


def shared_memory() -> CheckResult:
    """Tell whether Ray's object store fits in /dev/shm; where not, Ray puts it on the disk."""
    try:
        free = psutil.disk_usage(str(SHARED_MEMORY)).free
    except OSError:
        return note(f"there is no {SHARED_MEMORY} here", "on Linux, mount a tmpfs there")
    wanted = min(STORE_SHARE * memory_bytes()[1], max(STORE_CAP, 0.95 * free))
    if free >= wanted:
        return ok(
            f"{size(free)} free in {SHARED_MEMORY}, enough for an object store of {size(wanted)}"
        )
    return slow(
        f"{size(free)} free in {SHARED_MEMORY}, and Ray's object store wants {size(wanted)}: it "
        "would be put into /tmp",
        f"delete files there, start the container with --shm-size={math.ceil(wanted / 1e9)}gb, or "
        f"start Ray with --object-store-memory {int(0.9 * free)}",
    )


def open_files() -> CheckResult:
    """Tell how many files a process may open: each connection of Ray is one."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= MANY_FILES:
        return ok("no limit" if soft == resource.RLIM_INFINITY else f"{soft} a process")
    remedy = f"ulimit -n {MANY_FILES}, before Ray is started"
    if hard != resource.RLIM_INFINITY and hard < MANY_FILES:
        remedy = f"raise the hard limit of {hard} (limits.conf, or docker run --ulimit nofile)"
    if soft < FEW_FILES:
        return fails(f"{soft} a process: Ray runs out of connections", remedy)
    return note(f"{soft} a process, enough for a few nodes; Ray recommends {MANY_FILES}", remedy)
