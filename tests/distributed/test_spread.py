"""--placement: each stage on a node of its own, on a cluster of nodes with room for them all."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.distributed.local_cluster import LocalNodes
from tests.distributed.test_controller import OPTIONS, SearchCallback, events, train_watched
from tests.equivalence.test_cuts import layer_files, train_in_one_process
from tests.helpers.tiny_task import write_tiny_task

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def nodes() -> Iterator[LocalNodes]:
    with LocalNodes(2, cpus=2) as nodes:
        ray.init(nodes.cluster.address, log_to_driver=False, logging_level="error")
        yield nodes
        ray.shutdown()


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    task = write_tiny_task(tmp_path_factory.mktemp("task"))
    return {**OPTIONS, "epochs": 6, "task": task}


@pytest.fixture(scope="module")
def one_process(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    return train_in_one_process(TrainConfig(**options, run_dir=str(run_dir)))


def node_of(stage: int) -> str:
    def own_node(actor: Any) -> str:
        return ray.get_runtime_context().get_node_id()

    return ray.get(ray.get_actor(f"run:stage-{stage}").__ray_call__.remote(own_node))


def test_more_stages_than_nodes_are_refused_at_once(
    nodes: LocalNodes, options: dict[str, Any], tmp_path: Path
) -> None:
    run = TrainConfig(
        **options, stages=3, placement="strict_spread", run_dir=str(tmp_path / "run")
    )
    began = time.monotonic()
    with pytest.raises(UserError, match="3 actors .* each on a node of its own .* 2 CPUs"):
        train_watched(run)
    assert time.monotonic() - began < 5
    assert not (tmp_path / "run").exists()


def test_stages_are_apart_also_after_a_loss_and_the_bits_are_those_of_one_process(
    nodes: LocalNodes, options: dict[str, Any], one_process: Path, tmp_path: Path
) -> None:
    """A node goes, and the run with it to one stage, although the other has room for two."""
    where: list[set[str]] = []

    def act(line: str) -> None:
        if line == "train 8" and not where:
            where.append({node_of(0), node_of(1)})
            nodes.remove(0)
        if line == "epoch 3" and len(where) == 1:
            where.append({node_of(0)})
            nodes.add()
            while ray.cluster_resources().get("CPU", 0) < 4:
                time.sleep(0.1)
        if line == "epoch 6":
            where.append({node_of(0), node_of(1)})

    run = TrainConfig(
        **options, stages=2, placement="strict_spread", run_dir=str(tmp_path / "run")
    )
    result, _ = train_watched(run, SearchCallback(act))
    assert [len(ids) for ids in where] == [2, 1, 2]
    (stayed,) = where[1]
    assert stayed in where[0] & where[2]
    planned = [event["stages"] for event in events(result.run_dir, "planned")]
    assert [len(stages) for stages in planned] == [2, 1, 2]
    named = [{stage.partition(" on ")[2] for stage in stages} for stages in planned]
    assert named == [{node[:8] for node in ids} for ids in where]
    assert len(layer_files(one_process, 36)) == 4
    assert layer_files(result.run_dir, 36) == layer_files(one_process, 36)


def test_packed_stages_share_a_node(
    nodes: LocalNodes, options: dict[str, Any], tmp_path: Path
) -> None:
    where: list[str] = []

    def act(line: str) -> None:
        if line == "train 0":
            where.extend([node_of(0), node_of(1)])

    # until Ray has heard that the run before has ended, no node seems to have room for two
    while ray.available_resources().get("CPU", 0) < 4:
        time.sleep(0.1)
    run = TrainConfig(**{**options, "epochs": 1}, stages=2, run_dir=str(tmp_path / "run"))
    train_watched(run, SearchCallback(act))
    assert where[0] == where[1]
