"""Checks of the CPUs, memory, limits and GPUs that this process has."""

import math
import os
import resource
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
from rich.filesize import decimal

from rayff.data.memory import CGROUP, memory_bytes
from rayff.doctor.check import CheckResult, fail, note, ok, one_line, slow

NVIDIA_FILES = (Path("/dev/nvidiactl"), Path("/usr/lib/wsl/lib/nvidia-smi"))
"""One is there where a driver is, on Linux and in WSL."""
ACTOR_BYTES = 250_000_000
"""Memory of a stage actor without its layers."""


def cpus() -> CheckResult:
    """Compare the machine's CPUs with those that affinity and cgroup leave."""
    total, quota = os.cpu_count() or 1, cpu_quota()
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    text = f"{min(affinity, quota):g} of {total} usable"
    if affinity < min(total, quota):
        remedy = f"ray start --head --num-cpus {affinity}, then set RAY_ADDRESS"
        return slow(f"{text} (CPU affinity), which Ray does not see", remedy)
    return ok(text) if quota >= 1 else slow(f"{text} (cgroup)", "give the container a whole CPU")


def cpu_quota() -> float:
    """Return how many CPUs the cgroup (v2 or v1) allows; inf without a limit."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # not there, or "max"
            quota, period = map(int, " ".join(map(read_cgroup, names)).split())
            return quota / period if quota > 0 else math.inf
    return math.inf


def read_cgroup(name: str) -> str:
    """Return the content of a file of the cgroup."""
    return (CGROUP / name).read_text()


def niceness() -> CheckResult:
    """Check whether other processes go before Ray's workers, which are niced."""
    own, total = psutil.Process().nice(), os.cpu_count() or 1
    workers = min(own + int(os.environ.get("RAY_worker_niceness", "15")), 19)
    busy = psutil.cpu_percent(interval=0.5) / 100 * total
    text = f"{own}, and {workers} for workers of a local Ray; {busy:.1f} of {total} CPUs are busy"
    if own > 0 or (workers > own and busy > total / 2):
        remedy = "stop them, start this without nice, or start Ray with RAY_worker_niceness=0"
        return slow(f"{text}: other processes go first", remedy)
    return ok(text)


def memory() -> CheckResult:
    """Check that memory is free for stages; Ray kills workers when 95% is used."""
    total, free = memory_bytes()
    text = f"{decimal(free)} of {decimal(total)} free"
    if free < 0.05 * total:
        return fail(f"{text}: Ray kills workers when less than 5% is", "stop other processes")
    if free < 8 * ACTOR_BYTES:
        text += f", and a stage takes {decimal(ACTOR_BYTES)} plus its layers"
        return slow(text, "use few --stages and a small --width, or stop other processes")
    return ok(text)


def shared_memory() -> CheckResult:
    """Check that Ray's object store (30% of the free memory) fits into /dev/shm."""
    free = psutil.disk_usage("/dev/shm").free
    size = int(min(0.3 * memory_bytes()[1], max(10e9, 0.95 * free)))
    text = f"{decimal(free)} free in /dev/shm, Ray's object store takes {decimal(size)}"
    if free < size:
        remedy = f"docker run --shm-size={math.ceil(size / 1e9)}gb, or delete files there"
        return slow(f"{text}: it goes to /tmp", remedy)
    return ok(text)


def open_files() -> CheckResult:
    """Check how many files a process may open; each connection of Ray is one."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (math.inf if n == resource.RLIM_INFINITY else n for n in limits)
    text = f"{soft} per process (hard limit {hard}); Ray recommends 8192"
    remedy = "ulimit -n 8192 before Ray starts; hard limit: limits.conf, docker --ulimit nofile"
    return ok(text) if soft >= 8192 else (note if soft >= 1024 else fail)(text, remedy)


def precision() -> CheckResult:
    """Report the default precision and torch's threads."""
    import torch

    from rayff.kernels.precision import default_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return ok(f"{default_precision(device)} on {device}; {torch.get_num_threads()} torch threads")


def gpus() -> CheckResult:
    """Check that torch sees the GPUs, and find out why it does not."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # it says why; AssertionError where torch is built for CPUs
        if not any(file.exists() for file in NVIDIA_FILES):
            return ok("none: stages run on CPUs")
        text = f"torch {torch.__version__} sees no GPU: {one_line(error)}"
        if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
            return note(f"{text} (CUDA_VISIBLE_DEVICES hides them)", "unset CUDA_VISIBLE_DEVICES")
        return fail(text, "install torch for the driver's CUDA: https://pytorch.org/get-started")
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    models = Counter(f"{device.name} ({decimal(device.total_memory)})" for device in devices)
    found = ", ".join(f"{count} x {model}" for model, count in models.items())
    return ok(f"{found}; torch for CUDA {torch.version.cuda}")
