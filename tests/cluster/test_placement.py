"""What each stage takes, by hand for small clusters."""

import pytest

from rayff.cluster.placement import Node, num_actors, room, stage_resources
from rayff.partition.plan import StageResources
from rayff.spec import RunSpec, UserError


def cpu_nodes(*cpus: float) -> list[Node]:
    return [Node(cpus=amount, gpus=0) for amount in cpus]


class TestTheNumberOfActors:
    def test_is_two_on_cpus_and_one_on_a_single_cpu(self) -> None:
        assert num_actors(RunSpec(), cpu_nodes(8), 17) == 2
        assert num_actors(RunSpec(), cpu_nodes(1), 17) == 1

    def test_is_the_number_of_gpus_but_not_more_than_layers(self) -> None:
        there = [Node(cpus=32, gpus=4), Node(cpus=32, gpus=4)]
        assert num_actors(RunSpec(), there, 17) == 8
        assert num_actors(RunSpec(), there, 4) == 4
        assert num_actors(RunSpec(device="cpu"), there, 17) == 2

    def test_is_what_the_run_says(self) -> None:
        assert num_actors(RunSpec(stages=5), cpu_nodes(2), 17) == 5
        assert num_actors(RunSpec(cuts=(3, 6)), cpu_nodes(2), 17) == 3

    def test_is_the_sum_of_the_replicas(self) -> None:
        assert num_actors(RunSpec(replicas="1,2,1"), cpu_nodes(2), 17) == 4
        assert num_actors(RunSpec(replicas="auto", stages=5), cpu_nodes(2), 4) == 5

    def test_may_be_more_than_layers_where_they_are_grouped(self) -> None:
        assert num_actors(RunSpec(replicas="auto"), [Node(cpus=32, gpus=8)], 4) == 8


class TestAnEvenShare:
    @pytest.mark.parametrize(
        ("cpus", "num_stages", "each"),
        [
            ((2,), 1, 2.0),
            ((2,), 2, 1.0),
            ((2,), 4, 0.5),
            ((8,), 3, 2.0),
            ((2, 2), 1, 2.0),  # a stage does not span nodes
            ((3, 3), 3, 1.0),  # 2 each would leave room for two stages only
            ((3, 1), 3, 1.0),
            ((1, 1), 3, 0.5),
        ],
    )
    def test_of_cpus(self, cpus: tuple[float, ...], num_stages: int, each: float) -> None:
        found = stage_resources(RunSpec(), cpu_nodes(*cpus), num_stages)
        assert found == StageResources(cpus=each, gpus=0.0)

    def test_of_gpus_is_one_or_a_fraction(self) -> None:
        there = [Node(cpus=16, gpus=1)]
        assert stage_resources(RunSpec(), there, 1) == StageResources(cpus=1, gpus=1)
        assert stage_resources(RunSpec(), there, 2) == StageResources(cpus=1, gpus=0.5)
        assert stage_resources(RunSpec(), [Node(cpus=8, gpus=2)] * 2, 4).gpus == 1
        assert stage_resources(RunSpec(device="cpu"), there, 2) == StageResources(cpus=8, gpus=0)

    def test_threads_are_whole_cpus(self) -> None:
        assert StageResources(cpus=0.5, gpus=0).threads == 1
        assert StageResources(cpus=3.0, gpus=0).threads == 3

    def test_room_counts_whole_stages_on_each_node(self) -> None:
        assert room(cpu_nodes(3, 3), StageResources(cpus=2, gpus=0)) == 2
        assert room([Node(cpus=1, gpus=4)], StageResources(cpus=0.5, gpus=1)) == 2


class TestAPlanTooLargeIsRefused:
    def test_for_cpus(self) -> None:
        with pytest.raises(UserError, match=r"4 actors of 0 GPUs and 1 CPUs.*\(0 GPUs, 2 CPUs\)"):
            stage_resources(RunSpec(cpus_per_stage=1), cpu_nodes(2), 4)

    def test_for_gpus(self) -> None:
        run = RunSpec(gpus_per_stage=1)
        with pytest.raises(UserError, match="2 actors of 1 GPUs.*--gpus-per-stage"):
            stage_resources(run, [Node(cpus=8, gpus=1)], 2)

    def test_for_gpus_where_there_are_none(self) -> None:
        with pytest.raises(UserError, match="the cluster has 0 GPUs.*--device cpu"):
            stage_resources(RunSpec(device="cuda"), cpu_nodes(2), 1)
        with pytest.raises(UserError, match="2 GPUs and 1 CPUs each are wanted"):
            stage_resources(RunSpec(gpus_per_stage=2), cpu_nodes(2), 1)
