"""Machines that are small, limited or busy."""

import os
import resource
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from rayff.data import memory
from rayff.doctor import machine

GIB = 2**30


@pytest.fixture(autouse=True)
def large_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 idle CPUs, 16 GiB of memory of which 10 are free, no cgroup."""
    for module in (machine, memory):
        monkeypatch.setattr(module, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "none")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 5.0)
    monkeypatch.setattr(psutil.Process, "nice", lambda process: 0)
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    set_memory(monkeypatch, 16 * GIB, 10 * GIB)


def set_memory(monkeypatch: pytest.MonkeyPatch, total: int, available: int) -> None:
    memory = SimpleNamespace(total=total, available=available)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def write(folder: Path, **files: object) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


class TestCpus:
    def test_all(self) -> None:
        assert machine.cpus() == machine.ok("8 of 8 usable")

    def test_affinity_that_ray_does_not_see(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
        result = machine.cpus()
        assert result.state == "slow"
        assert result.text.startswith("2 of 8 usable")
        assert "--num-cpus 2" in str(result.remedy)

    def test_quota_of_cgroup_v2(self, tmp_path: Path) -> None:
        write(tmp_path, cpu__max="250000 100000")
        assert machine.cpus() == machine.ok("2.5 of 8 usable")

    def test_quota_of_cgroup_v1(self, tmp_path: Path) -> None:
        write(tmp_path / "cpu", cpu__cfs_quota_us=50000, cpu__cfs_period_us=100000)
        result = machine.cpus()
        assert result.state == "slow"
        assert result.text.startswith("0.5 of 8 usable")

    @pytest.mark.parametrize("text", ["max 100000", "", "nonsense", "-1 100000"])
    def test_no_quota(self, text: str, tmp_path: Path) -> None:
        write(tmp_path, cpu__max=text)
        assert machine.cpu_quota() == float("inf")


class TestNiceness:
    @pytest.mark.parametrize(
        ("own", "environment", "busy_percent", "workers", "state"),
        [
            (0, "15", 5.0, 15, "ok"),
            (0, "15", 90.0, 15, "slow"),
            (0, "0", 90.0, 0, "ok"),
            (10, "15", 5.0, 19, "slow"),
        ],
    )
    def test_workers_are_niced(
        self,
        own: int,
        environment: str,
        busy_percent: float,
        workers: int,
        state: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(psutil.Process, "nice", lambda process: own)
        monkeypatch.setattr(psutil, "cpu_percent", lambda interval: busy_percent)
        monkeypatch.setenv("RAY_worker_niceness", environment)
        result = machine.niceness()
        assert result.state == state
        assert result.text.startswith(f"{own}, and {workers} for workers")


class TestMemory:
    @pytest.mark.parametrize(
        ("free", "state"), [(10 * GIB, "ok"), (GIB, "slow"), (GIB // 2, "fail")]
    )
    def test_free(self, free: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
        set_memory(monkeypatch, 16 * GIB, free)
        assert machine.memory().state == state

    def test_limit_of_cgroup_v2_without_file_cache(self, tmp_path: Path) -> None:
        write(tmp_path, memory__max=4 * GIB, memory__current=3 * GIB)
        write(tmp_path, memory__stat=f"anon 7\ninactive_file {GIB}\nactive_file {GIB // 2}")
        assert memory.memory_bytes() == (4 * GIB, int(2.5 * GIB))

    def test_limit_of_cgroup_v1(self, tmp_path: Path) -> None:
        folder = tmp_path / "memory"
        write(folder, memory__limit_in_bytes=4 * GIB, memory__usage_in_bytes=3 * GIB)
        write(folder, memory__stat=f"inactive_file 5\ntotal_inactive_file {GIB}")
        assert memory.memory_bytes() == (4 * GIB, 2 * GIB)

    @pytest.mark.parametrize("version", [1, 2])
    def test_the_narrowest_of_nested_groups(
        self, version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        membership = tmp_path / "membership"
        membership.write_text({1: "3:cpu:/\n4:memory:/a/b\n0::/\n", 2: "0::/a/b\n"}[version])
        monkeypatch.setattr(memory, "MEMBERSHIP", membership)
        root = tmp_path if version == 2 else tmp_path / "memory"
        names = {1: ("limit_in_bytes", "usage_in_bytes"), 2: ("max", "current")}[version]
        for folder, limit in ((root, 8 * GIB), (root / "a", 4 * GIB), (root / "a/b", 6 * GIB)):
            files = dict(zip(names, (limit, GIB), strict=True))
            write(folder, **{f"memory__{name}": value for name, value in files.items()})
            write(folder, memory__stat="anon 7")
        assert memory.memory_bytes() == (4 * GIB, 3 * GIB)

    @pytest.mark.parametrize("limit", ["max", 2**62])
    def test_cgroup_without_limit(self, limit: object, tmp_path: Path) -> None:
        write(tmp_path, memory__max=limit, memory__current=GIB, memory__stat="")
        assert memory.memory_bytes() == (16 * GIB, 10 * GIB)


@pytest.mark.parametrize(
    ("available", "shm_free", "state"),
    [
        (10 * GIB, 4 * GIB, "ok"),
        (10 * GIB, 64 * 2**20, "slow"),  # of a container
        (500 * GIB, 50 * GIB, "ok"),  # Ray asks for no more than there is
    ],
)
def test_shared_memory(
    available: int, shm_free: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_memory(monkeypatch, 512 * GIB, available)
    monkeypatch.setattr(psutil, "disk_usage", lambda path: SimpleNamespace(free=shm_free))
    result = machine.shared_memory()
    assert result.state == state
    assert state == "ok" or "--shm-size=4gb" in str(result.remedy)


@pytest.mark.parametrize(
    ("soft", "state"),
    [(256, "fail"), (1024, "note"), (20_000, "ok"), (resource.RLIM_INFINITY, "ok")],
)
def test_open_files(soft: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, resource.RLIM_INFINITY))
    assert machine.open_files().state == state


def test_precision() -> None:
    assert machine.precision().text[:4] in ("fp32", "bf16")


class TestGpus:
    @pytest.fixture(autouse=True)
    def broken_cuda(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A machine with a driver, whose GPUs torch cannot use."""

        def refuse() -> None:
            raise RuntimeError("the NVIDIA driver is too old")

        monkeypatch.setattr(torch.cuda, "init", refuse)
        monkeypatch.setattr(machine, "NVIDIA_FILES", (tmp_path,))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def test_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "NVIDIA_FILES", (tmp_path / "none",))
        assert machine.gpus().state == "ok"

    def test_unusable(self) -> None:
        result = machine.gpus()
        assert result.state == "fail"
        assert "the NVIDIA driver is too old" in result.text

    def test_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert machine.gpus().state == "note"

    def test_usable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = SimpleNamespace(name="H100", total_memory=85e9)
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
        assert machine.gpus().text.startswith("2 x H100 (85.0 GB);")
