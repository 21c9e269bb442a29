"""What each actor takes, by hand for small clusters."""

from typing import Any

import pytest

from rayff import TrainConfig
from rayff.config.errors import UserError
from rayff.distributed.placement import (
    Node,
    actor_range,
    capacity,
    num_actors,
    short_names,
    stage_resources,
)
from rayff.partition.plan import StageResources


def cpu_nodes(*cpus: float) -> list[Node]:
    return [Node(cpus=amount, gpus=0) for amount in cpus]


ONE_GPU, TWO_GPUS, FOUR_GPUS = (Node(cpus=8 * gpus, gpus=gpus) for gpus in (1, 2, 4))
APART = {"placement": "strict_spread"}


@pytest.mark.parametrize(
    ("options", "there", "count"),
    [
        # two on CPUs, one on a single CPU
        ({}, cpu_nodes(8), 2),
        ({}, cpu_nodes(1), 1),
        # one a GPU
        ({}, [FOUR_GPUS, FOUR_GPUS], 8),
        ({"device": "cpu"}, [FOUR_GPUS, FOUR_GPUS], 2),
        ({"method": "bp"}, [FOUR_GPUS, FOUR_GPUS], 8),
        ({"method": "bp"}, cpu_nodes(8), 1),
        # as the run says
        ({"stages": 5}, cpu_nodes(2), 5),
        ({"cuts": (3, 6)}, cpu_nodes(2), 3),
        ({"method": "bp", "workers": 3}, cpu_nodes(2), 3),
        ({"replicas": "1,2,1"}, cpu_nodes(2), 4),
        ({"replicas": "auto", "stages": 5}, cpu_nodes(2), 5),
        # as many as the cluster holds
        ({"elastic": "2:5"}, cpu_nodes(1), 2),
        ({"elastic": "2:5"}, cpu_nodes(3), 3),
        ({"elastic": "2:5"}, cpu_nodes(9), 5),
        ({"elastic": "2:5"}, [FOUR_GPUS], 4),
        # each on a node of its own
        (APART, [TWO_GPUS] * 3, 3),
        (APART, cpu_nodes(0, 8), 1),
        (APART, cpu_nodes(8, 8, 8), 2),
        ({**APART, "elastic": "1:9"}, cpu_nodes(0, 8, 8, 8), 3),
    ],
    ids=str,
)
def test_the_number_of_actors(options: dict[str, Any], there: list[Node], count: int) -> None:
    assert num_actors(TrainConfig(**options), there, 17) == count


def test_a_stage_has_a_layer_at_least_unless_actors_are_grouped() -> None:
    there = [FOUR_GPUS, FOUR_GPUS]
    assert num_actors(TrainConfig(), there, 4) == 4
    assert num_actors(TrainConfig(elastic="2:9"), there, 4) == 4
    assert num_actors(TrainConfig(replicas="auto"), there, 4) == 8


@pytest.mark.parametrize(
    ("options", "fewest_and_most"),
    [
        ({}, (1, 2)),
        ({"stages": 3}, (1, 3)),
        ({"elastic": "2:5"}, (2, 4)),  # the network has four layers
        ({"cuts": (1, 2)}, (3, 3)),
        ({"replicas": "1,2"}, (3, 3)),
        ({"replicas": "auto", "stages": 3}, (3, 3)),
        ({"method": "bp", "workers": 2}, (2, 2)),
    ],
    ids=str,
)
def test_a_run_shrinks_with_its_cluster_unless_it_says_its_stages(
    options: dict[str, Any], fewest_and_most: tuple[int, int]
) -> None:
    assert actor_range(TrainConfig(**options), cpu_nodes(8), 4) == fewest_and_most


class TestAnEvenShare:
    @pytest.mark.parametrize(
        ("cpus", "count", "each"),
        [
            ((2,), 1, 2.0),
            ((2,), 2, 1.0),
            ((2,), 4, 0.5),
            ((8,), 3, 2.0),
            ((2, 2), 1, 2.0),  # an actor does not span nodes
            ((3, 3), 3, 1.0),  # 2 each would leave room for two actors only
            ((3, 1), 3, 1.0),
            ((1, 1), 3, 0.5),
        ],
    )
    def test_of_cpus(self, cpus: tuple[float, ...], count: int, each: float) -> None:
        found = stage_resources(TrainConfig(), cpu_nodes(*cpus), count)
        assert found == StageResources(cpus=each, gpus=0.0)

    @pytest.mark.parametrize(
        ("cpus", "count", "each"),
        [((4, 4), 2, 4.0), ((8, 2, 4), 2, 4.0), ((0, 8, 2, 4), 3, 2.0), ((0.5, 4), 2, 0.5)],
    )
    def test_on_nodes_of_their_own_is_that_of_the_poorest(
        self, cpus: tuple[float, ...], count: int, each: float
    ) -> None:
        found = stage_resources(TrainConfig(**APART), cpu_nodes(*cpus), count)
        assert found == StageResources(cpus=each, gpus=0.0)

    def test_of_gpus_is_one_or_a_fraction(self) -> None:
        there = [ONE_GPU]
        assert stage_resources(TrainConfig(), there, 1) == StageResources(cpus=1, gpus=1)
        assert stage_resources(TrainConfig(), there, 2) == StageResources(cpus=1, gpus=0.5)
        assert stage_resources(TrainConfig(), [TWO_GPUS] * 2, 4).gpus == 1
        assert stage_resources(TrainConfig(transport="nccl"), [TWO_GPUS], 2).gpus == 1
        on_cpus = stage_resources(TrainConfig(device="cpu"), there, 2)
        assert on_cpus == StageResources(cpus=4, gpus=0)

    def test_threads_are_whole_cpus(self) -> None:
        assert StageResources(cpus=0.5, gpus=0).threads == 1
        assert StageResources(cpus=3.0, gpus=0).threads == 3


def test_capacity_counts_whole_actors_on_each_node() -> None:
    assert capacity(cpu_nodes(3, 3), StageResources(cpus=2, gpus=0)) == 2
    assert capacity([Node(cpus=1, gpus=4)], StageResources(cpus=0.5, gpus=1)) == 2
    each = StageResources(cpus=1, gpus=0)
    assert capacity(cpu_nodes(4, 2, 0), each) == 6
    assert capacity(cpu_nodes(4, 2, 0), each, apart=True) == 2


@pytest.mark.parametrize(
    ("there", "names"),
    [
        (
            [("gpu-1.example.org", "10.0.0.1"), ("gpu-2.example.org", "10.0.0.2")],
            ["gpu-1", "gpu-2"],
        ),
        ([("node.a", "10.0.0.1"), ("node.b", "10.0.0.2")], ["node.a", "node.b"]),
        ([("node", "10.0.0.1"), ("node", "10.0.0.2")], ["10.0.0.1", "10.0.0.2"]),
        ([("", "10.0.0.1"), ("node", "10.0.0.2")], ["10.0.0.1", "10.0.0.2"]),
        ([("node", "127.0.0.1")] * 2, ["00000000", "11111111"]),
    ],
    ids=str,
)
def test_nodes_are_named_by_what_differs(there: list[tuple[str, str]], names: list[str]) -> None:
    by_id = {str(index) * 56: where for index, where in enumerate(there)}
    assert list(short_names(by_id).values()) == names


@pytest.mark.parametrize(
    ("options", "there", "count", "sentence"),
    [
        ({}, cpu_nodes(0), 2, r"2 actors of 0 GPUs and 1 CPUs.*\(0 GPUs, 0 CPUs\)"),
        ({"cpus_per_stage": 1}, cpu_nodes(2), 4, r"4 actors of 0 GPUs and 1.*\(0 GPUs, 2 CPUs\)"),
        ({"gpus_per_stage": 1}, [ONE_GPU], 2, "2 actors of 1 GPUs.*--gpus-per-stage"),
        ({"device": "cuda"}, cpu_nodes(2), 1, "the cluster has no GPUs; use --device cpu"),
        ({"gpus_per_stage": 2}, cpu_nodes(2), 1, "1 actor of 2 GPUs and 1 CPUs each is needed"),
        (
            {"device": "cuda", "gpus_per_stage": 0},
            [ONE_GPU],
            1,
            "a stage would take 0; use .* larger --gpus-per-stage",
        ),
        ({"transport": "nccl"}, cpu_nodes(2), 2, "nccl is for GPUs, .* object-store or gloo"),
        ({"transport": "cuda-ipc"}, cpu_nodes(2), 2, "cuda-ipc is for GPUs, .* object-store"),
        (
            APART,
            cpu_nodes(8, 8),
            3,
            r"3 actors of 0 GPUs and 8 CPUs each are needed, each on a node of its own "
            r"\(--placement strict_spread\), and its nodes have \(0 GPUs, 8 CPUs\) \+ "
            r"\(0 GPUs, 8 CPUs\); use fewer --stages, --replicas or --workers, or --placement "
            "spread$",
        ),
        ({**APART, "gpus_per_stage": 0.5}, [ONE_GPU], 2, "0.5 GPUs .* a node of its own"),
        ({**APART, "cpus_per_stage": 6}, cpu_nodes(8, 4), 2, "or a smaller --cpus-per-stage"),
    ],
    ids=str,
)
def test_a_plan_that_is_too_large_is_refused_with_the_remedy(
    options: dict[str, Any], there: list[Node], count: int, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        stage_resources(TrainConfig(**options), there, count)
