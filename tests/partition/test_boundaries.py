import time
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayff.models.zoo import architecture
from rayff.partition.boundaries import Costs, balanced_boundaries, balanced_division


def costs(layer_s: list[float], boundary_s: list[float] | None = None, **fixed: Any) -> Costs:
    return Costs(layer_s=layer_s, boundary_s=boundary_s or [0.0] * len(layer_s), **fixed)


def multiples(*seconds: int) -> st.SearchStrategy[float]:
    """Draw one of few whole numbers of seconds, so that sums are exact and ties are many.

    They are multiples of 12, so that up to four replicas share them exactly.
    """
    return st.sampled_from([12.0 * second for second in seconds])


@st.composite
def all_costs(draw: st.DrawFn) -> Costs:
    size = draw(st.integers(1, 6))

    def some(*seconds: int) -> list[float]:
        return draw(st.lists(multiples(*seconds), min_size=size, max_size=size))

    return Costs(
        layer_s=some(0, 1, 2, 3, 12),
        boundary_s=some(0, 1, 2),
        step_s=some(0, 1),
        all_reduce_s=some(0, 0, 1, 6),
    )


class TestCosts:
    def test_a_boundary_costs_both_of_its_stages(self):
        some = costs([1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 0.25, 0.125])
        assert some.stages_s([]) == [10.0]
        assert some.stages_s([2]) == [1 + 2 + 0.25, 0.25 + 3 + 4]
        assert some.stages_s([1, 3]) == [1 + 0.5, 0.5 + 2 + 3 + 0.125, 0.125 + 4]
        assert some.stages_s([1, 2, 3]) == [1.5, 2.75, 3.375, 4.125]

    def test_the_input_of_the_network_costs_nothing(self):
        assert costs([1.0, 2.0], [9.0, 0.5]).stages_s([1]) == [1.5, 2.5]

    def test_the_speedup_is_all_layers_over_the_slowest_stage(self):
        some = costs([1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 0.25, 0.125])
        assert some.speedup([]) == 1.0
        assert some.speedup([2]) == pytest.approx(10 / 7.25)

    def test_replicas_share_the_images_and_all_reduce_gradients(self):
        some = costs(
            [1.0, 2.0, 3.0], [0.0, 0.5, 0.25], step_s=[0.1] * 3, all_reduce_s=[1.0, 2.0, 3]
        )
        assert some.stages_s([1, 2]) == pytest.approx([1.6, 2.85, 3.35])
        assert some.stages_s([1, 2], [1, 2, 4]) == pytest.approx(
            [1 + 0.5 + 0.1, (0.5 + 2 + 0.25) / 2 + 0.1 + 2.0, (0.25 + 3) / 4 + 0.1 + 1.5 * 3.0]
        )
        assert some.stages_s([], [2]) == pytest.approx([6 / 2 + 0.3 + 6.0])
        assert some.speedup([], [2]) == pytest.approx(6.3 / 9.3)


class TestBalancedBoundaries:
    @pytest.mark.parametrize(
        ("layer_s", "num_stages", "cuts"),
        [
            ([1, 1, 1, 1], 2, (2,)),
            ([3, 1, 1, 1], 2, (1,)),
            ([1, 1, 1, 3], 2, (3,)),
            ([1, 2, 3, 4, 5, 6], 3, (3, 5)),
            ([5], 1, ()),
            ([1, 2, 3], 1, ()),
            ([1, 2, 3], 3, (1, 2)),
            ([0, 0, 0], 3, (1, 2)),
        ],
    )
    def test_small_chains(self, layer_s: list[float], num_stages: int, cuts: tuple[int, ...]):
        assert balanced_boundaries(costs(layer_s), (1,) * num_stages) == cuts

    def test_an_expensive_boundary_is_avoided(self):
        assert balanced_boundaries(costs([2, 2, 2, 2], [0, 1, 3, 1]), (1, 1)) == (1,)

    def test_of_equally_fast_boundaries_those_with_less_transfer_win(self):
        # the last layer's 9 s are the slowest stage in any case
        assert balanced_boundaries(costs([1, 1, 1, 9], [0, 2, 1, 0]), (1, 1, 1)) == (2, 3)
        assert balanced_boundaries(costs([1, 1, 1, 9], [0, 1, 2, 0]), (1, 1, 1)) == (1, 3)

    def test_less_transfer_wins_over_balance_that_gains_nothing(self):
        # a cut at 2 leaves 2 s and 2 s in front of the 9 s, one at 1 leaves 1 s and 3 s
        assert balanced_boundaries(costs([1, 1, 1, 1, 9], [0, 0.25, 0.5, 0.5, 0]), (1, 1, 1)) == (
            1,
            4,
        )

    @settings(max_examples=400)
    @given(some=all_costs(), data=st.data())
    def test_no_other_cuts_are_better_for_these_replicas(self, some: Costs, data: st.DataObject):
        size = len(some.layer_s)
        one_each = st.integers(1, size).map(lambda stages: [1] * stages)
        counts = one_each | st.lists(st.integers(1, 4), min_size=1, max_size=size)
        replicas = tuple(data.draw(counts))

        def rank(cuts: tuple[int, ...]) -> tuple[float, float]:
            slowest = max(some.stages_s(cuts, replicas))
            return slowest, sum(some.boundary_s[cut] for cut in cuts)

        found = balanced_boundaries(some, replicas)
        assert len(found) == len(replicas) - 1
        assert list(found) == sorted({*found} & {*range(1, size)})
        assert rank(found) == min(map(rank, combinations(range(1, size), len(replicas) - 1)))

    def test_a_stage_of_more_replicas_gets_more_layers(self):
        assert balanced_boundaries(costs([1.0] * 6), (1, 2)) == (2,)
        assert balanced_boundaries(costs([1.0] * 6), (2, 1)) == (4,)
        assert balanced_boundaries(costs([1.0] * 8), (1, 2, 1)) == (2, 6)

    @pytest.mark.parametrize("num_stages", [0, 4, 100])
    def test_a_number_of_stages_that_the_layers_cannot_make_is_refused(self, num_stages: int):
        with pytest.raises(ValueError, match=f"3 layers make 1 to 3 stages, not {num_stages}"):
            balanced_boundaries(costs([1, 1, 1]), (1,) * num_stages)

    def test_the_resnet_is_cut_where_its_groups_end_if_arithmetic_alone_counts(self):
        network = architecture("resnet", num_classes=10, image_channels=3)
        work = [float(layer.num_weights * layer.out_size**2) for layer in network.layers]
        assert balanced_boundaries(costs(work), (1,) * 4) == (5, 9, 13)
        assert costs(work).speedup((5, 9, 13)) == pytest.approx(3.98, abs=0.005)
        # 4, 4, 4 and 5 layers
        assert costs(work).speedup((4, 8, 12)) == pytest.approx(3.21, abs=0.005)


class TestBalancedDivision:
    @settings(max_examples=200)
    @given(some=all_costs(), num_actors=st.integers(1, 6), most=st.integers(1, 4))
    def test_no_other_is_faster_or_as_fast_with_fewer_actors_or_less_transfer(
        self, some: Costs, num_actors: int, most: int
    ):
        size = len(some.layer_s)

        def rank(cuts: tuple[int, ...], replicas: tuple[int, ...]) -> tuple[float, int, float]:
            transfer = sum(some.boundary_s[cut] for cut in cuts)
            return max(some.stages_s(cuts, replicas)), sum(replicas), transfer

        every = (
            rank(cuts, replicas)
            for stages in range(1, min(size, num_actors) + 1)
            for cuts in combinations(range(1, size), stages - 1)
            for replicas in product(range(1, most + 1), repeat=stages)
            if sum(replicas) <= num_actors
        )
        found = balanced_division(some, num_actors, most)
        assert len(found.replicas) == len(found.cuts) + 1
        assert list(found.cuts) == sorted(set(found.cuts) & set(range(1, size)))
        assert max(found.replicas) <= most
        assert rank(found.cuts, found.replicas) == min(every)

    @pytest.mark.parametrize(
        ("layer_s", "num_actors", "cuts", "replicas"),
        [
            ([1, 1, 1, 1], 1, (), (1,)),
            ([1, 4, 1], 4, (), (4,)),  # nothing to sum: the whole is shared evenly
            ([5], 3, (), (3,)),
        ],
    )
    def test_without_a_cost_of_summing_replicas_are_best(
        self, layer_s: list[float], num_actors: int, cuts: tuple[int, ...], replicas: Any
    ):
        found = balanced_division(costs(layer_s), num_actors, 99)
        assert (found.cuts, found.replicas) == (cuts, replicas)

    def test_slow_layers_with_few_weights_are_replicated(self):
        some = costs([2, 8, 2, 2], all_reduce_s=[9, 0.5, 9, 9])
        found = balanced_division(some, 5, 99)
        # 8/3 + 4/3 * 0.5 is 3.33 s; with two it would be 4.5, and the last two layers take 4
        assert (found.cuts, found.replicas) == ((1, 2), (1, 3, 1))
        assert some.stages_s(found.cuts, found.replicas) == pytest.approx([2, 10 / 3, 4])

    def test_an_actor_without_effect_is_left_out(self):
        found = balanced_division(costs([5, 1, 1], all_reduce_s=[99, 99, 99]), 8, 99)
        assert (found.cuts, found.replicas) == ((1,), (1, 1))

    def test_there_are_no_more_replicas_than_images(self):
        assert balanced_division(costs([8]), 8, 2).replicas == (2,)

    def test_the_deepest_network_on_64_actors_is_divided_in_seconds(self):
        network = architecture("resnet101", num_classes=10, image_channels=3)
        work = [1e-9 * layer.num_weights * layer.out_size**2 for layer in network.layers]
        all_reduce = [1e-9 * layer.num_weights for layer in network.layers]
        start = time.perf_counter()
        found = balanced_division(costs(work, all_reduce_s=all_reduce), 64, 128)
        assert sum(found.replicas) <= 64
        assert time.perf_counter() - start < 20
