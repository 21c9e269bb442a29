"""What each stage takes, by hand for small clusters."""

import pytest

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.distributed.placement import Node, num_actors, room, short_names, stage_resources
from rayff.partition.plan import StageResources


def cpu_nodes(*cpus: float) -> list[Node]:
    return [Node(cpus=amount, gpus=0) for amount in cpus]


class TestTheNumberOfActors:
    def test_is_two_on_cpus_and_one_on_a_single_cpu(self) -> None:
        assert num_actors(TrainConfig(), cpu_nodes(8), 17) == 2
        assert num_actors(TrainConfig(), cpu_nodes(1), 17) == 1

    def test_is_the_number_of_gpus_but_not_more_than_layers(self) -> None:
        there = [Node(cpus=32, gpus=4), Node(cpus=32, gpus=4)]
        assert num_actors(TrainConfig(), there, 17) == 8
        assert num_actors(TrainConfig(), there, 4) == 4
        assert num_actors(TrainConfig(device="cpu"), there, 17) == 2

    def test_is_what_the_run_says(self) -> None:
        assert num_actors(TrainConfig(stages=5), cpu_nodes(2), 17) == 5
        assert num_actors(TrainConfig(cuts=(3, 6)), cpu_nodes(2), 17) == 3

    def test_is_the_sum_of_the_replicas(self) -> None:
        assert num_actors(TrainConfig(replicas="1,2,1"), cpu_nodes(2), 17) == 4
        assert num_actors(TrainConfig(replicas="auto", stages=5), cpu_nodes(2), 4) == 5

    def test_may_be_more_than_layers_where_they_are_grouped(self) -> None:
        assert num_actors(TrainConfig(replicas="auto"), [Node(cpus=32, gpus=8)], 4) == 8


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
        found = stage_resources(TrainConfig(), cpu_nodes(*cpus), num_stages)
        assert found == StageResources(cpus=each, gpus=0.0)

    def test_of_gpus_is_one_or_a_fraction(self) -> None:
        there = [Node(cpus=16, gpus=1)]
        assert stage_resources(TrainConfig(), there, 1) == StageResources(cpus=1, gpus=1)
        assert stage_resources(TrainConfig(), there, 2) == StageResources(cpus=1, gpus=0.5)
        assert stage_resources(TrainConfig(), [Node(cpus=8, gpus=2)] * 2, 4).gpus == 1
        assert stage_resources(TrainConfig(device="cpu"), there, 2) == StageResources(
            cpus=8, gpus=0
        )

    def test_threads_are_whole_cpus(self) -> None:
        assert StageResources(cpus=0.5, gpus=0).threads == 1
        assert StageResources(cpus=3.0, gpus=0).threads == 3

    def test_room_counts_whole_stages_on_each_node(self) -> None:
        assert room(cpu_nodes(3, 3), StageResources(cpus=2, gpus=0)) == 2
        assert room([Node(cpus=1, gpus=4)], StageResources(cpus=0.5, gpus=1)) == 2


class TestEachOnANodeOfItsOwn:
    RUN = TrainConfig(placement="strict_spread")

    def test_a_node_has_room_for_one(self) -> None:
        each = StageResources(cpus=1, gpus=0)
        assert room(cpu_nodes(4, 2, 0), each, apart=True) == 2
        assert room(cpu_nodes(4, 2, 0), each) == 6

    def test_there_are_not_more_actors_than_nodes(self) -> None:
        gpus = [Node(cpus=8, gpus=2)] * 3
        assert num_actors(self.RUN, gpus, 17) == 3
        assert num_actors(self.RUN, cpu_nodes(0, 8), 17) == 1
        assert num_actors(self.RUN, cpu_nodes(8, 8, 8), 17) == 2
        elastic = TrainConfig(placement="strict_spread", elastic="1:9")
        assert num_actors(elastic, cpu_nodes(0, 8, 8, 8), 17) == 3

    @pytest.mark.parametrize(
        ("cpus", "count", "each"),
        [((4, 4), 2, 4.0), ((8, 2, 4), 2, 4.0), ((0, 8, 2, 4), 3, 2.0), ((0.5, 4), 2, 0.5)],
    )
    def test_the_poorest_of_the_nodes_decides_the_share(
        self, cpus: tuple[float, ...], count: int, each: float
    ) -> None:
        found = stage_resources(self.RUN, cpu_nodes(*cpus), count)
        assert found == StageResources(cpus=each, gpus=0.0)

    def test_more_actors_than_nodes_are_refused(self) -> None:
        sentence = (
            r"3 actors of 0 GPUs and 8 CPUs each are wanted, each on a node of its own "
            r"\(--placement strict_spread\), and its nodes have \(0 GPUs, 8 CPUs\) \+ "
            r"\(0 GPUs, 8 CPUs\); use fewer --stages, --replicas or --workers, or --placement "
            "spread$"
        )
        with pytest.raises(UserError, match=sentence):
            stage_resources(self.RUN, cpu_nodes(8, 8), 3)
        shared = TrainConfig(placement="strict_spread", gpus_per_stage=0.5)
        with pytest.raises(UserError, match="2 actors of 0.5 GPUs .* a node of its own"):
            stage_resources(shared, [Node(cpus=8, gpus=1)], 2)

    def test_smaller_ones_are_the_remedy_where_there_are_nodes_enough(self) -> None:
        large = TrainConfig(placement="strict_spread", cpus_per_stage=6)
        with pytest.raises(UserError, match="--placement spread, or a smaller --cpus-per-stage"):
            stage_resources(large, cpu_nodes(8, 4), 2)


class TestNodesAreNamed:
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
    def test_by_what_tells_them_apart(
        self, there: list[tuple[str, str]], names: list[str]
    ) -> None:
        by_id = {str(index) * 56: where for index, where in enumerate(there)}
        assert list(short_names(by_id).values()) == names


class TestAPlanTooLargeIsRefused:
    def test_for_a_cluster_without_cpus(self) -> None:
        with pytest.raises(UserError, match=r"2 actors of 0 GPUs and 1 CPUs.*\(0 GPUs, 0 CPUs\)"):
            stage_resources(TrainConfig(), cpu_nodes(0), 2)

    def test_for_cpus(self) -> None:
        with pytest.raises(UserError, match=r"4 actors of 0 GPUs and 1 CPUs.*\(0 GPUs, 2 CPUs\)"):
            stage_resources(TrainConfig(cpus_per_stage=1), cpu_nodes(2), 4)

    def test_for_gpus(self) -> None:
        run = TrainConfig(gpus_per_stage=1)
        with pytest.raises(UserError, match="2 actors of 1 GPUs.*--gpus-per-stage"):
            stage_resources(run, [Node(cpus=8, gpus=1)], 2)

    def test_for_gpus_where_there_are_none(self) -> None:
        with pytest.raises(UserError, match="the cluster has no GPUs; use --device cpu"):
            stage_resources(TrainConfig(device="cuda"), cpu_nodes(2), 1)
        with pytest.raises(UserError, match="1 actor of 2 GPUs and 1 CPUs each is wanted"):
            stage_resources(TrainConfig(gpus_per_stage=2), cpu_nodes(2), 1)

    def test_for_stages_on_gpus_that_take_none(self) -> None:
        run = TrainConfig(device="cuda", gpus_per_stage=0)
        with pytest.raises(
            UserError, match="a stage would take 0; use .* larger --gpus-per-stage"
        ):
            stage_resources(run, [Node(cpus=8, gpus=1)], 1)

    def test_for_a_transport_between_gpus_where_there_are_none(self) -> None:
        run = TrainConfig(transport="nccl")
        with pytest.raises(UserError, match="nccl is for GPUs, .* object-store or gloo"):
            stage_resources(run, cpu_nodes(2), 2)
        assert stage_resources(run, [Node(cpus=8, gpus=2)], 2).gpus == 1
