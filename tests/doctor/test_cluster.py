"""What is told of a Ray that starts, answers, does not answer, or is of another version."""

import dataclasses
import socket
from contextlib import ExitStack, nullcontext
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import ray
from packaging.requirements import Requirement

from rayff.distributed.local_cluster import LocalNodes
from rayff.distributed.placement import Node
from rayff.doctor import cluster as checkup
from rayff.doctor.check import CheckResult, examine
from rayff.doctor.cluster import Programs, ray_checks, same_programs, stores

HERE = Programs(host="here", python="3.11.7", ray="2.60.0", torch="2.14.1", niceness=0)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def examine_all() -> dict[str, CheckResult]:
    return {name: examine(check) for name, check in ray_checks()}


class TestToken:
    @pytest.fixture(autouse=True)
    def none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))

    def test_none_is_wanted(self) -> None:
        result = checkup.token()
        assert result.state == "ok"
        assert result.found == "RAY_AUTH_MODE is not set, a token is not here"

    def test_one_is_wanted_by_a_cluster(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        assert checkup.token().state == "fails"

    def test_is_never_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "tell-nobody")
        result = checkup.token()
        assert result.state == "ok"
        assert "tell-nobody" not in result.found


class TestJobs:
    def test_packages_that_are_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wants = [
            Requirement("no-such-package>=3; extra == 'default'"),
            Requirement("another-one; extra == 'serve'"),
            Requirement("numpy; extra == 'default'"),
        ]
        monkeypatch.setattr(checkup, "requirements", lambda name: wants)
        result = checkup.job_packages()
        assert result.state == "note"
        assert result.found == "ray job submit needs no-such-package"
        assert result.remedy == "pip install 'ray[default]'"


class TestNodes:
    def test_without_cpus(self) -> None:
        result = checkup.describe([Node(cpus=0, gpus=1)])
        assert result.state == "fails"
        assert "0 CPUs and 1 GPUs" in result.found

    def test_with_a_small_store(self) -> None:
        large, small = (Node(cpus=1, gpus=0, store_bytes=n * 2**20) for n in (4096, 75))
        assert stores([large]).state == "ok"
        result = stores([large, small])
        assert result.state == "slow"
        assert result.found.startswith("4.0 GiB, 75 MiB")

    def test_with_the_same_programs(self) -> None:
        assert same_programs(HERE, [HERE, dataclasses.replace(HERE, niceness=15)]).state == "ok"

    def test_with_another_torch(self) -> None:
        other = dataclasses.replace(HERE, host="far", torch="2.9.0")
        result = same_programs(HERE, [HERE, other])
        assert result.state == "fails"
        assert "1 of 2 nodes differ" in result.found
        assert "far has Python 3.11.7, ray 2.60.0, torch 2.9.0" in result.found

    def test_without_this_package(self) -> None:
        result = same_programs(HERE, [HERE, "No module named 'rayff'"])
        assert result.state == "fails"
        assert "No module named 'rayff'" in result.found
        assert "--working-dir" in str(result.remedy)


def test_a_ray_that_runs_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "ray_session", nullcontext)
    monkeypatch.setattr(checkup, "_remote_programs", MagicMock())
    monkeypatch.setattr(ray, "wait", lambda calls, timeout: ([], calls))
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 0.0})
    with ExitStack() as stack:
        result = checkup.connect(stack)
    assert result.state == "fails"
    assert result.found == "no task ran within 60 s: 0 CPUs and 0 GPUs are unused"


@pytest.mark.ray
class TestRay:
    def test_starts_here_and_is_gone_again(self) -> None:
        found = examine_all()
        assert found["Ray"].state == "ok"
        assert found["Ray"].found.startswith("a local one starts in ")
        assert found["nodes"].found.startswith("1: ")
        assert found["programs of the nodes"].found.startswith("the same on 1 of 1: ")
        assert not ray.is_initialized()

    def test_does_not_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        found = examine_all()
        assert list(found)[-1] == "Ray", "there is nothing more to look at"
        assert found["Ray"].state == "fails"
        assert "127.0.0.1:1 did not answer" in found["Ray"].found
        assert "RAY_ADDRESS" in str(found["Ray"].remedy)

    def test_is_something_else_that_listens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
            monkeypatch.setattr(checkup, "JOIN_S", 6.0)
            with ExitStack() as stack:
                result = checkup.connect(stack)
        assert result.state == "fails"
        assert "is no Ray cluster that can be joined within 6 s" in result.found

    def test_is_a_cluster(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with LocalNodes(1, store_bytes=80 * 2**20) as there:
            monkeypatch.setenv("RAY_ADDRESS", there.environment["RAY_ADDRESS"])
            found = examine_all()
        assert found["Ray"].found.startswith("the cluster at ")
        assert "0 CPUs and 0 GPUs" in found["nodes"].found
        assert "1 CPUs and 0 GPUs" in found["nodes"].found
        assert found["object stores"].state == "slow"
        assert "the same on 2 of 2" in found["programs of the nodes"].found
        assert not ray.is_initialized()
