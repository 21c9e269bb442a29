"""The plan: names of stages, boundaries and replicas, rebalancing, length of chunks."""

import dataclasses
from typing import Any

import pytest

from rayff.config.train_config import TrainConfig
from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture
from rayff.partition.boundaries import Costs
from rayff.partition.estimate import estimated_costs
from rayff.partition.plan import (
    Plan,
    StageResources,
    default_chunk,
    make_plan,
    rebalanced,
)


def plan(
    network: Architecture,
    cuts: tuple[int, ...],
    slowest_s: float = 1.0,
    cpus: float = 2,
    replicas: tuple[int, ...] = (),
) -> Plan:
    """Return a plan whose first layer takes all the time."""
    layer_s = [slowest_s] + [0.0] * (len(network) - 1)
    return Plan(
        architecture=network,
        cuts=cuts,
        replicas=replicas or (1,) * (len(cuts) + 1),
        resources=StageResources(cpus=cpus, gpus=0),
        costs=Costs(layer_s=layer_s, boundary_s=[0.0] * len(network)),
    )


@pytest.fixture
def resnet() -> Architecture:
    return architecture("resnet", num_classes=10, image_channels=3)


@pytest.fixture
def tinycnn() -> Architecture:
    return architecture("tinycnn", num_classes=10, image_channels=1)


class TestNames:
    @pytest.mark.parametrize(
        ("cuts", "names"),
        [
            ((), ["layers 0-16"]),
            ((5, 9, 13), ["layers 0-4", "layers 5-8", "layers 9-12", "layers 13-16"]),
            ((1, 16), ["layer 0", "layers 1-15", "layer 16"]),
        ],
    )
    def test_a_stage_is_named_after_its_layers(
        self, resnet: Architecture, cuts: tuple[int, ...], names: list[str]
    ):
        assert plan(resnet, cuts).stage_names == names
        assert plan(resnet, cuts).num_stages == len(names)

    def test_a_plan_reads_as_one_line(self, resnet: Architecture):
        assert str(plan(resnet, ())) == "1 stage (layers 0-16), 2 CPUs each"
        assert (
            str(plan(resnet, (1, 9), cpus=1))
            == "3 stages (layer 0 | layers 1-8 | layers 9-16), 1 CPU each"
        )

    def test_replicas_are_named_and_counted(self, resnet: Architecture):
        three = plan(resnet, (1, 9), replicas=(3, 2, 1))
        assert str(three) == "3 stages (layer 0 x3 | layers 1-8 x2 | layers 9-16), 2 CPUs each"
        assert three.num_actors == 6
        assert three.layer_ranges == ["0", "1-8", "9-16"]
        assert three.by_stage("abcdefgh") == [["a", "b", "c"], ["d", "e"], ["f"]]
        assert three.stages_s == pytest.approx([1 / 3, 0, 0])
        assert three.speedup == pytest.approx(3)

    def test_nodes_are_named_where_there_are_several(self, resnet: Architecture):
        three = plan(resnet, (1, 9), replicas=(3, 2, 1))
        placed = dataclasses.replace(three, nodes=("a", "b", "a", "c", "c", "b"))
        assert placed.stage_names == [
            "layer 0 x3 on a, b",
            "layers 1-8 x2 on c",
            "layers 9-16 on b",
        ]

    @pytest.mark.parametrize(
        ("cpus", "gpus", "shown"),
        [
            (1, 0, "1 CPU"),
            (0.5, 0, "0.5 CPUs"),
            (4, 1, "1 GPU, 4 CPUs"),
            (1, 0.25, "0.25 GPU, 1 CPU"),
        ],
    )
    def test_resources_read_as_words(self, cpus: float, gpus: float, shown: str):
        assert str(StageResources(cpus=cpus, gpus=gpus)) == shown

    @pytest.mark.parametrize(("cpus", "threads"), [(0, 1), (0.5, 1), (1, 1), (3.9, 3), (8, 8)])
    def test_a_stage_has_a_thread_for_each_whole_cpu(self, cpus: float, threads: int):
        assert StageResources(cpus=cpus, gpus=0).threads == threads


class TestMakePlan:
    """Four layers of 3, 1, 1 and 1 seconds whose gradients take nothing to add up."""

    @pytest.mark.parametrize(
        ("asked", "num_actors", "cuts", "replicas"),
        [
            ({}, 2, (1,), (1, 1)),
            ({"stages": 3}, 3, (1, 2), (1, 1, 1)),
            ({"cuts": (3,)}, 2, (3,), (1, 1)),
            ({"replicas": "2,1"}, 3, (2,), (2, 1)),
            ({"replicas": "2,1", "cuts": (1,)}, 3, (1,), (2, 1)),
            ({"replicas": "auto"}, 3, (), (3,)),
            ({"replicas": "auto", "batch_size": 1}, 2, (1,), (1, 1)),
            ({"method": "bp"}, 3, (), (3,)),
        ],
    )
    def test_options_fix_a_part_and_the_costs_decide_the_rest(
        self,
        tinycnn: Architecture,
        asked: dict[str, Any],
        num_actors: int,
        cuts: tuple[int, ...],
        replicas: tuple[int, ...],
    ):
        costs = Costs(layer_s=[3.0, 1.0, 1.0, 1.0], boundary_s=[0.0] * 4)
        config, resources = TrainConfig(**asked), StageResources(cpus=1, gpus=0)
        batch_size = config.batch_size or 128
        found = make_plan(config, tinycnn, resources, costs, num_actors, batch_size)
        assert (found.cuts, found.replicas) == (cuts, replicas)
        assert (found.costs, found.resources, found.method) == (costs, resources, config.method)

    @pytest.mark.parametrize(
        ("method", "shown"),
        [
            ("bp", "backpropagation by 2 workers, 1 CPU each"),
            ("bp-deepsup", "backpropagation with deep supervision by 2 workers, 1 CPU each"),
        ],
    )
    def test_a_plan_of_backpropagation_has_workers(
        self, tinycnn: Architecture, method: Any, shown: str
    ):
        found = dataclasses.replace(plan(tinycnn, (), cpus=1, replicas=(2,)), method=method)
        assert (str(found), found.stage_names) == (shown, ["2 workers"])


class TestRebalanced:
    """Four layers of 1 second each on two stages, cut in the middle."""

    @pytest.mark.parametrize(
        ("measured", "cuts"),
        [
            ([2.0, 2.0], (2,)),
            ([2.0, 2.2], (2,)),
            ([2.0, 6.0], (3,)),  # three times as slow: one layer of 3 s and three of 1 s
            ([6.0, 2.0], (1,)),
            ([2.0, 3.2], (2,)),  # 3 s and 1.6 s save less than a tenth
        ],
    )
    def test_boundaries_move_where_that_saves_a_tenth(
        self, tinycnn: Architecture, measured: list[float], cuts: tuple[int, ...]
    ):
        costs = Costs(layer_s=[1.0] * 4, boundary_s=[0.0] * 4)
        before = dataclasses.replace(plan(tinycnn, (2,)), costs=costs)
        assert rebalanced(before, measured) == dataclasses.replace(before, cuts=cuts)


def test_estimated_costs_are_proportional_to_the_multiplications(resnet: Architecture):
    found = estimated_costs(resnet, 128, "cpu")
    assert found.layer_s[5] / found.layer_s[0] == pytest.approx(200 * 200 / (3 * 100) / 4)
    assert len(found.boundary_s) == 17
    assert estimated_costs(resnet, 256, "cuda").layer_s[0] < found.layer_s[0]


class TestDefaultChunk:
    """A third of a second, 64 MiB or 64 batches, whichever is least; and one batch at least.

    After the second layer of tinycnn an image has 200 x 16 x 16 = 51,200 elements.
    """

    @pytest.mark.parametrize(
        ("slowest_s", "batch_size", "bytes_per_element", "chunk"),
        [
            (0.07, 4, 4, 4),  # 0.3 s hold four of 0.07 s
            (0.3, 4, 4, 1),
            (0.16, 4, 4, 1),
            (5.0, 4, 4, 1),
            (0.001, 4, 4, 64),  # 300 by time, 81 by bytes
            (0.0, 4, 4, 64),
            (0.001, 128, 4, 2),  # 25 MiB a batch
            (0.001, 128, 2, 5),  # 12.5 MiB a batch
            (0.001, 1024, 4, 1),  # 200 MiB a batch
        ],
    )
    def test_the_least_limit_decides(
        self,
        tinycnn: Architecture,
        slowest_s: float,
        batch_size: int,
        bytes_per_element: int,
        chunk: int,
    ):
        found = default_chunk(
            plan(tinycnn, (2,), slowest_s),
            batch_size=batch_size,
            bytes_per_element=bytes_per_element,
        )
        assert found == chunk

    def test_the_widest_of_several_cuts_counts(self, tinycnn: Architecture):
        # 100 x 32 x 32 x 128 x 4 bytes are 50 MiB
        three = plan(tinycnn, (1, 2, 3), 0.001)
        assert default_chunk(three, batch_size=128, bytes_per_element=4) == 1

    def test_a_shortcut_counts_too(self):
        resnet = architecture("resnet", num_classes=10, image_channels=3, width=10)
        # 20 x 16 x 16 features and 20 x 32 x 32 of shortcut: 25,600 of 4 bytes, 100 KiB an image
        inside = plan(resnet, (6,), 0.001)
        assert default_chunk(inside, batch_size=32, bytes_per_element=4) == 20

    def test_one_stage_is_limited_by_time_alone(self, tinycnn: Architecture):
        alone = plan(tinycnn, (), 0.07)
        assert default_chunk(alone, batch_size=10**9, bytes_per_element=4) == 4
