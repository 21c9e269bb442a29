"""A cluster of several nodes: where the stages go, and what happens when a node does."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from rayff import TrainConfig
from rayff.config.errors import UserError
from rayff.distributed.local_cluster import LocalNodes
from tests.helpers.runs import (
    RecordingCallback,
    events,
    layer_files,
    timeless,
    train_locally,
    train_on_ray,
)
from tests.helpers.stages import OPTIONS, call_actor, once

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def nodes() -> Iterator[LocalNodes]:
    with LocalNodes(2, cpus=2) as nodes:
        ray.init(nodes.cluster.address, log_to_driver=False, logging_level="error")
        yield nodes
        ray.shutdown()


@pytest.fixture(scope="module")
def options(tiny_task: str) -> dict[str, Any]:
    return {**OPTIONS, "epochs": 6, "task": tiny_task}


def node_of(stage: int) -> str:
    node: str = call_actor(f"stage-{stage}", lambda actor: ray.get_runtime_context().get_node_id())
    return node


def await_cpus(resources: Callable[[], dict[str, float]], count: int) -> None:
    while resources().get("CPU", 0) < count:
        time.sleep(0.1)


@pytest.mark.parametrize("size", [{"stages": 3}, {"elastic": "3:4"}], ids=str)
def test_more_stages_than_the_nodes_hold_are_refused_at_once(
    nodes: LocalNodes, options: dict[str, Any], tmp_path: Path, size: dict[str, Any]
) -> None:
    plan = {**size, "placement": "strict_spread", "run_dir": str(tmp_path / "run")}
    began = time.monotonic()
    with pytest.raises(UserError, match="3 actors .* each on a node of its own .* 2 CPUs"):
        train_on_ray(TrainConfig(**options, **plan))
    assert time.monotonic() - began < 5
    assert not (tmp_path / "run").exists()


def test_stages_shrink_and_grow_with_the_nodes_and_stay_apart(
    nodes: LocalNodes, options: dict[str, Any], tmp_path: Path
) -> None:
    """A node goes, and the run with it to one stage, although the other has room for two.

    The bits are those of one process that nothing disturbs.
    """
    where: list[set[str]] = []

    def lose_a_node() -> None:
        where.append({node_of(0), node_of(1)})
        nodes.remove(0)

    def add_a_node() -> None:
        where.append({node_of(0)})
        nodes.add()
        await_cpus(ray.cluster_resources, 4)

    steps = [
        once("train 8", lose_a_node),
        once("epoch 3", add_a_node),
        once("epoch 6", lambda: where.append({node_of(0), node_of(1)})),
    ]
    seen = RecordingCallback(lambda line: [step(line) for step in steps])
    plan = {"stages": 2, "placement": "strict_spread", "run_dir": str(tmp_path / "run")}
    result = train_on_ray(TrainConfig(**options, **plan), seen)

    assert [len(ids) for ids in where] == [2, 1, 2]
    (stayed,) = where[1]
    assert stayed in where[0] & where[2]
    planned = [event["stages"] for event in events(result.run_dir, "planned")]
    named = [{stage.partition(" on ")[2] for stage in stages} for stages in planned]
    assert named == [{node[:8] for node in ids} for ids in where]
    assert any("room for 2 stages again" in line for line in seen.lines)

    alone = train_locally(TrainConfig(**options, run_dir=str(tmp_path / "alone")))
    assert layer_files(result.run_dir) == layer_files(alone.run_dir)
    assert timeless(result.metrics) == timeless(alone.metrics)


def test_packed_stages_share_a_node(
    nodes: LocalNodes, options: dict[str, Any], tmp_path: Path
) -> None:
    where: list[str] = []
    look = once("train 0", lambda: where.extend([node_of(0), node_of(1)]))
    # until Ray has heard that the run before has ended, no node seems to have room for two
    await_cpus(ray.available_resources, 4)
    config = TrainConfig(**{**options, "epochs": 1}, stages=2, run_dir=str(tmp_path / "run"))
    train_on_ray(config, RecordingCallback(look))
    assert where[0] == where[1]
