"""Machines that are made up: small, limited, busy."""

import os
import resource
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rayff.doctor import machine

GIB = 2**30


@pytest.fixture(autouse=True)
def roomy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 CPUs, nothing to do, 16 GiB of which 10 are free, no cgroup."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 5.0)
    monkeypatch.setattr(psutil.Process, "nice", lambda process: 0)
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    have_memory(monkeypatch, 16 * GIB, 10 * GIB)


def have_memory(monkeypatch: pytest.MonkeyPatch, total: int, available: int) -> None:
    memory = SimpleNamespace(total=total, available=available)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


class TestCpus:
    def test_all_of_them(self) -> None:
        result = machine.cpus()
        assert result.state == "ok"
        assert "8 of 8 CPUs" in result.found

    def test_an_affinity_that_ray_does_not_see(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
        result = machine.cpus()
        assert result.state == "slow"
        assert "2 of 8 CPUs" in result.found
        assert "--num-cpus 2" in str(result.remedy)

    def test_a_quota_of_the_cgroup(self, tmp_path: Path) -> None:
        (tmp_path / "cpu.max").write_text("250000 100000\n")
        assert machine.cpus().found.startswith("2.5 of 8 CPUs")

    def test_a_quota_of_an_old_cgroup(self, tmp_path: Path) -> None:
        (tmp_path / "cpu").mkdir()
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
        result = machine.cpus()
        assert result.state == "slow"
        assert result.found.startswith("0.5 of 8 CPUs")

    @pytest.mark.parametrize("text", ["max 100000\n", "", "nonsense"])
    def test_no_quota(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "cpu.max").write_text(text)
        assert machine.cpu_quota() is None


class TestNiceness:
    def test_a_quiet_machine(self) -> None:
        result = machine.niceness()
        assert result.state == "ok"
        assert "nice 15" in result.found

    def test_other_work_goes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 90.0)
        result = machine.niceness()
        assert result.state == "slow"
        assert "7.2 of 8 CPUs" in result.found
        assert "RAY_worker_niceness=0" in str(result.remedy)

    @pytest.mark.parametrize(
        ("own", "said", "workers"), [(3, None, 18), (10, None, 19), (2, "5", 7), (2, "?", 17)]
    )
    def test_workers_are_nicer_than_this_process_up_to_19(
        self, monkeypatch: pytest.MonkeyPatch, own: int, said: str | None, workers: int
    ) -> None:
        monkeypatch.setattr(psutil.Process, "nice", lambda process: own)
        if said is not None:
            monkeypatch.setenv("RAY_worker_niceness", said)
        found = machine.niceness().found
        assert found.startswith(f"Ray's workers run at nice {workers}, this process at {own}")

    def test_workers_that_are_not_nice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 90.0)
        monkeypatch.setenv("RAY_worker_niceness", "0")
        assert machine.niceness().state == "ok"


class TestMemory:
    def test_enough(self) -> None:
        assert machine.memory().found == "10.0 GiB of 16.0 GiB free"

    def test_little(self, monkeypatch: pytest.MonkeyPatch) -> None:
        have_memory(monkeypatch, 16 * GIB, GIB)
        assert machine.memory().state == "slow"

    def test_so_little_that_ray_kills_workers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        have_memory(monkeypatch, 16 * GIB, GIB // 2)
        result = machine.memory()
        assert result.state == "fails"
        assert "95%" in result.found

    def test_a_limit_of_the_cgroup(self, tmp_path: Path) -> None:
        (tmp_path / "memory.max").write_text(f"{4 * GIB}\n")
        (tmp_path / "memory.current").write_text(f"{GIB}\n")
        assert machine.memory().found == "3.0 GiB of 4.0 GiB free"


class TestSharedMemory:
    def have(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        monkeypatch.setattr(psutil, "disk_usage", lambda path: SimpleNamespace(free=free))

    def test_enough(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.have(monkeypatch, 4 * GIB)
        assert machine.shared_memory().state == "ok"

    def test_the_64_mib_of_a_container(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.have(monkeypatch, 64 * 2**20)
        result = machine.shared_memory()
        assert result.state == "slow"
        assert result.found.startswith("64 MiB free")
        assert "wants 3.0 GiB" in result.found
        assert "--shm-size=4gb" in str(result.remedy)

    def test_a_large_machine_asks_for_no_more_than_there_is(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        have_memory(monkeypatch, 512 * GIB, 500 * GIB)
        self.have(monkeypatch, 50 * GIB)
        assert machine.shared_memory().state == "ok"

    def test_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "none")
        assert machine.shared_memory().state == "note"


class TestOpenFiles:
    @pytest.mark.parametrize(
        ("soft", "hard", "state", "remedy"),
        [
            (256, 4096, "fails", "hard limit of 4096"),
            (256, 65536, "fails", "ulimit -n 8192"),
            (1024, resource.RLIM_INFINITY, "note", "ulimit -n 8192"),
            (20_000, 20_000, "ok", "None"),
            (resource.RLIM_INFINITY, resource.RLIM_INFINITY, "ok", "None"),
        ],
    )
    def test_is_judged_by_what_ray_needs(
        self, soft: int, hard: int, state: str, remedy: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
        result = machine.open_files()
        assert result.state == state
        assert remedy in str(result.remedy)
