"""Replicas of a stage: rows of a batch, the pieces they exchange, and their joint report."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rayff.config.errors import RunError
from rayff.engine.commands import Batch, Report
from rayff.engine.replicas import Replica, join, merge, split
from rayff.learning.chain import Activations
from tests.engine.stages import CLASSES, all_replicas, exchange

replica_counts = st.integers(1, 7)


class TestRows:
    @pytest.mark.parametrize(
        ("batch_size", "shares"),
        [
            (12, [(0, 4), (4, 8), (8, 12)]),
            (8, [(0, 2), (2, 5), (5, 8)]),
            (2, [(0, 0), (0, 1), (1, 2)]),
            (1, [(0, 0), (0, 0), (0, 1)]),
        ],
    )
    def test_are_as_even_as_can_be(self, batch_size: int, shares: list[tuple[int, int]]) -> None:
        rows = [replica.rows(batch_size) for replica in all_replicas(3)]
        assert [(each.start, each.stop) for each in rows] == shares

    @given(count=replica_counts, batch_size=st.integers(0, 40))
    def test_tile_the_batch(self, count: int, batch_size: int) -> None:
        rows = [row for replica in all_replicas(count) for row in replica.rows(batch_size)]
        assert rows == list(range(batch_size))


class TestReceivers:
    @pytest.mark.parametrize(
        ("senders", "receivers", "expected"),
        [
            (1, 1, [[0]]),
            (1, 3, [[0, 1, 2]]),
            (3, 1, [[0], [0], [0]]),
            (2, 3, [[0, 1], [1, 2]]),
            (3, 2, [[0], [0, 1], [1]]),
            (2, 4, [[0, 1], [2, 3]]),
            (3, 3, [[0], [1], [2]]),
            (2, 0, [[], []]),
        ],
    )
    def test_are_those_whose_shares_overlap(
        self, senders: int, receivers: int, expected: list[list[int]]
    ) -> None:
        found = [list(replica.receivers(receivers)) for replica in all_replicas(senders)]
        assert found == expected

    @given(senders=replica_counts, receivers=replica_counts, batch_size=st.integers(0, 40))
    def test_have_every_row_that_is_theirs(
        self, senders: int, receivers: int, batch_size: int
    ) -> None:
        for sender in all_replicas(senders):
            own = set(sender.rows(batch_size))
            others = [r for r in range(receivers) if r not in sender.receivers(receivers)]
            for other in others:
                assert not own & set(Replica(index=other, count=receivers).rows(batch_size))


def make_batch(size: int, *, shortcut: bool = False, logits: int = 0) -> Batch:
    """Return a batch in which every number is that of its row."""
    rows = torch.arange(size)

    def numbered(*shape: int) -> Tensor:
        return rows.float().view(-1, *[1] * len(shape)).expand(size, *shape).clone()

    return Batch(
        activations=Activations(
            features=numbered(2, 3, 3), shortcut=numbered(1, 3, 3) if shortcut else None
        ),
        labels=rows,
        logits=tuple(numbered(CLASSES) for _ in range(logits)),
    )


class TestPieces:
    @given(
        path=st.lists(replica_counts, min_size=1, max_size=4),
        sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3),
        shortcut=st.booleans(),
        logits=st.integers(0, 2),
    )
    def test_tile_every_batch_over_any_row_of_stages(
        self, path: list[int], sizes: list[int], shortcut: bool, logits: int
    ) -> None:
        whole = [make_batch(size, shortcut=shortcut, logits=logits) for size in sizes]
        chunks = [whole]
        for count in path:
            chunks = exchange(chunks, sizes, count)
            for replica, chunk in zip(all_replicas(count), chunks, strict=True):
                rows = [list(replica.rows(size)) for size in sizes]
                assert [batch.labels.tolist() for batch in chunk] == rows
        (again,) = exchange(chunks, sizes, 1)
        for before, after in zip(whole, again, strict=True):
            assert torch.equal(after.labels, before.labels)
            assert torch.equal(after.activations.features, before.activations.features)
            if shortcut:
                assert torch.equal(after.activations.shortcut, before.activations.shortcut)  # type: ignore[arg-type]
            assert len(after.logits) == logits
            assert all(map(torch.equal, after.logits, before.logits))

    def test_a_chunk_between_two_single_actors_is_the_chunk_itself(self) -> None:
        chunk = [make_batch(3)]
        (piece,) = split(chunk, [3], Replica(), 1)
        assert piece is chunk
        assert join([piece]) is chunk

    def test_the_order_of_memory_is_kept(self) -> None:
        features = torch.randn(5, 4, 3, 3).to(memory_format=torch.channels_last)
        batch = Batch(activations=Activations(features=features), labels=torch.arange(5))
        (again,) = exchange(exchange([[batch]], [5], 3), [5], 1)
        assert again[0].activations.features.stride() == features.stride()


class TestMerging:
    def test_counts_add_up_and_times_are_of_the_stage(self) -> None:
        hits = np.eye(2, dtype=int), np.ones((2, 2), int)
        merged = merge(
            [
                Report(started_s=5, busy_s=1, images=3, loss_sums=(1, 2), hits=hits[0]),
                Report(started_s=4, busy_s=2, images=0, loss_sums=(0, 0), sent_bytes=30),
                Report(
                    started_s=6, busy_s=6, images=4, loss_sums=(3, 5), hits=hits[1], sent_bytes=12
                ),
            ]
        )
        assert (merged.started_s, merged.busy_s, merged.images) == (4, 3, 7)
        assert merged.loss_sums == (4, 7)
        assert merged.sent_bytes == 42
        assert merged.hits is not None
        assert merged.hits.tolist() == [[2, 1], [1, 2]]

    def test_logits_of_a_batch_are_in_the_order_of_its_images(self) -> None:
        """Of two batches; the second has one image, which is the second replica's."""
        logits = np.arange(4 * 2 * 3, dtype=np.float32).reshape(2, 4, 3)
        labels, empty = np.arange(4), np.empty(0)
        reports = [
            Report(
                started_s=0, busy_s=0, logits=(logits[:, :1], empty), labels=(labels[:1], empty)
            ),
            Report(
                started_s=0,
                busy_s=0,
                logits=(logits[:, 1:3], logits[:, 3:]),
                labels=(labels[1:3], labels[3:]),
            ),
        ]
        merged = merge(reports)
        assert [each.tolist() for each in merged.logits] == [
            logits[:, :3].tolist(),
            logits[:, 3:].tolist(),
        ]
        assert [each.tolist() for each in merged.labels] == [[0, 1, 2], [3]]

    def test_a_snapshot_is_that_of_the_first_where_all_agree(self) -> None:
        states = {3: np.zeros(2, np.uint8), 4: np.ones(2, np.uint8)}
        digests = {3: "a", 4: "b"}
        reports = [
            Report(started_s=0, busy_s=0, states=states, digests=digests),
            Report(started_s=0, busy_s=0, digests=digests),
        ]
        assert merge(reports).states == states

    def test_replicas_that_differ_are_an_error_that_names_the_layer(self) -> None:
        reports = [
            Report(started_s=0, busy_s=0, digests={3: "a", 4: "b"}),
            Report(started_s=0, busy_s=0, digests={3: "a", 4: "c"}),
        ]
        with pytest.raises(RunError, match="replicas of layer 4 no longer have the same weights"):
            merge(reports)

    def test_one_report_is_itself(self) -> None:
        report = Report(started_s=0, busy_s=0)
        assert merge([report]) is report
