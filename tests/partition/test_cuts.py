from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayff.partition.cuts import Costs, balanced_cuts
from rayff.spec import architecture


def costs(layer_s: list[float], crossing_s: list[float] | None = None) -> Costs:
    return Costs(layer_s=layer_s, crossing_s=crossing_s or [0.0] * len(layer_s))


def stage_times(
    layer_s: list[float], crossing_s: list[float], cuts: tuple[int, ...]
) -> list[float]:
    """Deal the layers out to stages one by one, and charge each cut to both its sides."""
    times = [0.0] * (len(cuts) + 1)
    stage = 0
    for layer, seconds in enumerate(layer_s):
        if layer in cuts:
            times[stage] += crossing_s[layer]
            stage += 1
            times[stage] += crossing_s[layer]
        times[stage] += seconds
    return times


class TestCosts:
    def test_a_cut_costs_the_stage_before_and_the_stage_behind_it(self):
        some = costs([1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 0.25, 0.125])
        assert some.stages_s([]) == [10.0]
        assert some.stages_s([2]) == [1 + 2 + 0.25, 0.25 + 3 + 4]
        assert some.stages_s([1, 3]) == [1 + 0.5, 0.5 + 2 + 3 + 0.125, 0.125 + 4]
        assert some.stages_s([1, 2, 3]) == [1.5, 2.75, 3.375, 4.125]

    def test_the_way_into_the_network_costs_nothing_here(self):
        assert costs([1.0, 2.0], [9.0, 0.5]).stages_s([1]) == [1.5, 2.5]

    def test_the_speedup_is_the_whole_over_the_slowest_stage(self):
        some = costs([1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 0.25, 0.125])
        assert some.speedup([]) == 1.0
        assert some.speedup([2]) == pytest.approx(10 / 7.25)

    @given(data=st.data())
    def test_stages_are_those_of_dealing_out_the_layers(self, data: st.DataObject):
        size = data.draw(st.integers(1, 8))
        times = st.lists(st.integers(0, 9).map(float), min_size=size, max_size=size)
        layer_s, crossing_s = data.draw(times), data.draw(times)
        among = st.lists(st.integers(1, size - 1), unique=True) if size > 1 else st.just([])
        cuts = tuple(sorted(data.draw(among)))
        expected = stage_times(layer_s, crossing_s, cuts)
        assert costs(layer_s, crossing_s).stages_s(cuts) == expected


class TestBalancedCuts:
    @settings(max_examples=300)
    @given(data=st.data())
    def test_no_other_cuts_are_faster_or_as_fast_with_less_transfer(self, data: st.DataObject):
        size = data.draw(st.integers(1, 8))
        # whole seconds, so that sums are exact; and few of them, so that ties are many
        layer = st.sampled_from([0.0, 1.0, 2.0, 3.0, 12.0])
        crossing = st.sampled_from([0.0, 1.0, 2.0])
        layer_s = data.draw(st.lists(layer, min_size=size, max_size=size))
        crossing_s = data.draw(st.lists(crossing, min_size=size, max_size=size))
        num_stages = data.draw(st.integers(1, size))

        def rank(cuts: tuple[int, ...]) -> tuple[float, float]:
            slowest = max(stage_times(layer_s, crossing_s, cuts))
            return slowest, sum(crossing_s[cut] for cut in cuts)

        found = balanced_cuts(costs(layer_s, crossing_s), num_stages)
        assert len(found) == num_stages - 1
        assert list(found) == sorted(set(found))
        assert all(1 <= cut < size for cut in found)
        assert rank(found) == min(map(rank, combinations(range(1, size), num_stages - 1)))

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
    def test_small_chains_are_cut_as_a_person_would(
        self, layer_s: list[float], num_stages: int, cuts: tuple[int, ...]
    ):
        assert balanced_cuts(costs(layer_s), num_stages) == cuts

    def test_a_dear_crossing_is_gone_around(self):
        assert balanced_cuts(costs([2, 2, 2, 2], [0, 1, 3, 1]), 2) == (1,)

    def test_of_equally_fast_cuts_the_ones_with_less_transfer_are_taken(self):
        # the last layer's 9 s are the slowest stage anyhow
        assert balanced_cuts(costs([1, 1, 1, 9], [0, 2, 1, 0]), 3) == (2, 3)
        assert balanced_cuts(costs([1, 1, 1, 9], [0, 1, 2, 0]), 3) == (1, 3)

    def test_less_transfer_wins_over_balance_that_gains_nothing(self):
        # a cut at 2 leaves 2 s and 2 s in front of the 9 s, one at 1 leaves 1 s and 3 s
        assert balanced_cuts(costs([1, 1, 1, 1, 9], [0, 0.25, 0.5, 0.5, 0]), 3) == (1, 4)

    @pytest.mark.parametrize("num_stages", [-1, 0, 4, 100])
    def test_a_number_of_stages_that_the_layers_cannot_make_is_refused(self, num_stages: int):
        with pytest.raises(ValueError, match=f"3 layers make 1 to 3 stages, not {num_stages}"):
            balanced_cuts(costs([1, 1, 1]), num_stages)

    def test_the_resnet_is_cut_where_its_groups_end_if_arithmetic_alone_counts(self):
        network = architecture("resnet", num_classes=10, image_channels=3)
        work = [float(layer.num_weights * layer.out_size**2) for layer in network.layers]
        assert balanced_cuts(costs(work), 4) == (5, 9, 13)
        assert costs(work).speedup((5, 9, 13)) == pytest.approx(3.98, abs=0.005)
        # 4, 4, 4 and 5 layers
        assert costs(work).speedup((4, 8, 12)) == pytest.approx(3.21, abs=0.005)
