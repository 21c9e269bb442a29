"""Simulated pipelines against schedules written by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayff.partition.boundaries import Costs
from rayff.partition.simulation import simulate, spans


class TestSpans:
    def test_one_stage_never_waits(self):
        assert spans([2.0], 3) == [[(0, 2), (2, 4), (4, 6)]]

    def test_a_slow_second_stage_is_always_busy(self):
        assert spans([1.0, 3.0], 3) == [
            [(0, 1), (1, 2), (2, 3)],
            [(1, 4), (4, 7), (7, 10)],
        ]

    def test_a_fast_second_stage_waits_for_each_chunk(self):
        assert spans([3.0, 1.0], 3) == [
            [(0, 3), (3, 6), (6, 9)],
            [(3, 4), (6, 7), (9, 10)],
        ]

    def test_a_link_delays_and_carries_one_chunk_at_a_time(self):
        assert spans([1.0, 1.0], 3, link_s=[2.0]) == [
            [(0, 1), (1, 2), (2, 3)],
            [(3, 4), (5, 6), (7, 8)],
        ]

    def test_a_window_of_one_chunk_is_no_pipeline(self):
        assert spans([1.0, 2.0], 3, window=1) == [
            [(0, 1), (3, 4), (6, 7)],
            [(1, 3), (4, 6), (7, 9)],
        ]

    def test_a_window_of_two_keeps_two_stages_busy(self):
        assert spans([2.0, 2.0], 3, window=2) == spans([2.0, 2.0], 3)
        assert spans([1.0, 3.0], 4, window=2) == [
            [(0, 1), (1, 2), (4, 5), (7, 8)],
            [(1, 4), (4, 7), (7, 10), (10, 13)],
        ]

    @given(
        stage_s=st.lists(st.floats(0, 10), min_size=1, max_size=5),
        num_chunks=st.integers(1, 12),
        window=st.none() | st.integers(1, 6),
        data=st.data(),
    )
    def test_nothing_is_faster_than_the_slowest_stage_or_link_allows(
        self, stage_s: list[float], num_chunks: int, window: int | None, data: st.DataObject
    ):
        links = len(stage_s) - 1
        link_s = data.draw(st.lists(st.floats(0, 10), min_size=links, max_size=links))
        stages = spans(stage_s, num_chunks, link_s=link_s, window=window)
        total_s = stages[-1][-1][1]
        latency_s = sum(stage_s) + sum(link_s)
        slowest_s = max([*stage_s, *link_s])
        assert total_s >= (latency_s + (num_chunks - 1) * slowest_s) * (1 - 1e-9)
        if window is None:  # the bound is reached
            assert total_s == pytest.approx(latency_s + (num_chunks - 1) * slowest_s)
        for before, after in zip(stages, stages[1:], strict=False):
            assert all(end <= begin for (_, end), (begin, _) in zip(before, after, strict=True))
        for stage, seconds in zip(stages, stage_s, strict=True):
            assert all(end - begin == pytest.approx(seconds) for begin, end in stage)
            assert all(a[1] <= b[0] for a, b in zip(stage, stage[1:], strict=False))


class TestSimulate:
    COSTS = Costs(
        layer_s=[4.0, 8.0, 2.0],
        boundary_s=[0.0, 1.0, 2.0],
        step_s=[0.5, 0.5, 0.5],
        all_reduce_s=[0.0, 1.0, 0.0],
    )

    def test_transfers_add_to_the_time_of_stages(self):
        # 4 + 1 + 0.5, (1 + 8 + 2) / 2 + 0.5 + 1, 2 + 2 + 0.5
        found = simulate(self.COSTS, (1, 2), (1, 2, 1), batch_size=10, num_chunks=4)
        assert found.total_s == pytest.approx(5.5 + 7.0 + 4.5 + 3 * 7.0)
        assert found.images_per_s == pytest.approx(40 / 38)
        assert found.stage_busy == pytest.approx((22 / 38, 28 / 38, 18 / 38))

    def test_overlapped_transfers_do_not(self):
        # 4.5, 8 / 2 + 1.5, 2.5; a link between one and two actors carries whole batches
        found = simulate(self.COSTS, (1, 2), (1, 2, 1), batch_size=10, num_chunks=4, overlap=True)
        assert found.total_s == pytest.approx(4.5 + 1 + 5.5 + 2 + 2.5 + 3 * 5.5)

    def test_links_between_replicas_carry_pieces(self):
        some = Costs(layer_s=[0.0, 0.0], boundary_s=[0.0, 6.0])
        for replicas, link_s in (((1, 3), 6.0), ((2, 3), 3.0), ((3, 3), 2.0)):
            found = simulate(some, (1,), replicas, batch_size=1, num_chunks=1, overlap=True)
            assert found.total_s == pytest.approx(link_s)

    def test_longer_chunks_take_longer_to_fill(self):
        short = simulate(self.COSTS, (1, 2), batch_size=10, num_chunks=12)
        long = simulate(self.COSTS, (1, 2), batch_size=10, num_chunks=4, chunk=3)
        assert long.total_s - short.total_s == pytest.approx(2 * (5.5 + 4.5))

    def test_one_actor_is_always_busy(self):
        found = simulate(self.COSTS, (), batch_size=10, num_chunks=7)
        assert found.total_s == pytest.approx(7 * 15.5)
        assert found.stage_busy == pytest.approx((1.0,))
