"""A Ray that starts, answers, does not answer, or has other versions."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import ray

from rayff.distributed.local_cluster import LocalNodes
from rayff.distributed.placement import Node
from rayff.doctor import cluster
from rayff.doctor.__main__ import DoctorCommand, checks
from rayff.doctor.check import CheckResult, run_check

OWN = "Python 3.11.7, ray 2.60.0, torch 2.14.1"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("environment", "state"),
    [
        ({}, "ok"),
        ({"RAY_AUTH_MODE": "token"}, "ok"),  # a local Ray creates one
        ({"RAY_AUTH_MODE": "token", "RAY_ADDRESS": "10.0.0.1:6379"}, "fail"),
        (
            {
                **{"RAY_AUTH_MODE": "token", "RAY_ADDRESS": "10.0.0.1:6379"},
                "RAY_AUTH_TOKEN": "secret",
            },
            "ok",
        ),
    ],
)
def test_token(
    environment: dict[str, str], state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = cluster.token()
    assert result.state == state
    assert "secret" not in result.text


def test_job_submission_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "unmet_requirements", lambda package, extra: ["ray needs x"])
    assert cluster.job_submission().state == "note"


@pytest.mark.parametrize(
    ("nodes", "state"),
    [
        ([Node(cpus=1, gpus=0, store_bytes=4e9), Node(cpus=0, gpus=0, store_bytes=4e9)], "ok"),
        ([Node(cpus=1, gpus=0, store_bytes=4e9), Node(cpus=1, gpus=0, store_bytes=75e6)], "slow"),
        ([Node(cpus=0, gpus=1, store_bytes=4e9)], "fail"),
    ],
)
def test_node_resources(nodes: list[Node], state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(cluster, "nodes", lambda: nodes)
    result = cluster.node_resources()
    assert result is not None
    assert result.state == state


class TestVersionsOfNodes:
    def test_the_same(self) -> None:
        assert cluster.compare_versions(OWN, [("near", OWN), ("far", OWN)]).state == "ok"

    @pytest.mark.parametrize(
        "answer", ["Python 3.11.7, ray 2.60.0, torch 2.9.0", "No module named 'rayff'"]
    )
    def test_one_differs_and_is_named(self, answer: str) -> None:
        result = cluster.compare_versions(OWN, [("near", OWN), ("far", answer)])
        assert result.state == "fail"
        assert result.text.endswith(f"not on 1 of 2 nodes (far: {answer})")


def test_gpus_that_torch_does_not_see() -> None:
    assert cluster.compare_gpus([("near", ""), ("far", "")]).state == "ok"
    result = cluster.compare_gpus([("near", ""), ("far", "no driver")])
    assert result.state == "fail"
    assert "torch sees none on 1 of 2 nodes with GPUs (far: no driver)" in result.text


@pytest.mark.ray
class TestRay:
    def run(self) -> dict[str, CheckResult | None]:
        names = ("Ray", "nodes", "node versions")
        with ExitStack() as stack:
            table = checks(DoctorCommand(), stack)
            return {name: run_check(table[name]) for name in names}

    def test_starts_and_is_stopped(self) -> None:
        results = self.run()
        assert [result.state for result in results.values() if result] == ["ok"] * 3
        assert not ray.is_initialized()

    def test_address_without_a_listener(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        results = self.run()
        assert results["Ray"] is not None
        assert results["Ray"].state == "fail"
        assert "127.0.0.1:1 (RAY_ADDRESS) did not answer" in results["Ray"].text
        assert results["nodes"] is results["node versions"] is None

    def test_cluster(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with LocalNodes(1, store_bytes=80 * 2**20) as local_nodes:
            monkeypatch.setenv("RAY_ADDRESS", local_nodes.environment["RAY_ADDRESS"])
            results = self.run()
        assert [result.state for result in results.values() if result] == ["ok", "slow", "ok"]
        assert "on all 2" in str(results["node versions"])
        assert not ray.is_initialized()
