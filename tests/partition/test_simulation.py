"""Simulated pipelines against schedules written by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayff.partition.simulation import spans


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

    def test_a_latency_delays_and_keeps_no_chunk_from_the_link(self):
        assert spans([1.0, 1.0], 3, link_s=[0.5], latency_s=4.0) == [
            [(0, 1), (1, 2), (2, 3)],
            [(5.5, 6.5), (6.5, 7.5), (7.5, 8.5)],
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
