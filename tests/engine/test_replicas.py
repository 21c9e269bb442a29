"""Replicas in one process, in threads that add up their gradients, against the whole stage."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load
from torch import Tensor

from rayff.config.errors import RunError, TrainingDiverged
from rayff.config.recipe import Recipe
from rayff.data.images import ImageSet, Split
from rayff.engine.commands import Batch, Chunk, Command, Evaluate, Report, Snapshot, Train
from rayff.engine.learner import StageSpec
from rayff.engine.replicas import Replica, join, merge, split
from rayff.engine.stage import Stage, local_stage
from rayff.learning.chain import Activations
from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture

CPU = torch.device("cpu")
CLASSES = 4
RESNET = architecture("resnet", num_classes=CLASSES, image_channels=3, width=4)
replica_counts = st.integers(1, 7)


def all_replicas(count: int) -> list[Replica]:
    return [Replica(index=index, count=count) for index in range(count)]


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
    def test_are_those_whose_share_overlaps(
        self, senders: int, receivers: int, expected: list[list[int]]
    ) -> None:
        found = [list(replica.receivers(receivers)) for replica in all_replicas(senders)]
        assert found == expected

    @given(senders=replica_counts, receivers=replica_counts, batch_size=st.integers(0, 40))
    def test_see_every_row_that_they_are_to_see(
        self, senders: int, receivers: int, batch_size: int
    ) -> None:
        for sender in all_replicas(senders):
            own = set(sender.rows(batch_size))
            others = [r for r in range(receivers) if r not in sender.receivers(receivers)]
            for other in others:
                assert not own & set(Replica(index=other, count=receivers).rows(batch_size))


def make_batch(size: int, *, shortcut: bool = False, goodness: int = 0) -> Batch:
    """Return a batch whose every number tells its row."""
    rows = torch.arange(size)

    def numbered(*shape: int) -> Tensor:
        return rows.float().view(-1, *[1] * len(shape)).expand(size, *shape).clone()

    return Batch(
        activations=Activations(
            features=numbered(2, 3, 3), shortcut=numbered(1, 3, 3) if shortcut else None
        ),
        labels=rows,
        goodness=tuple(numbered(CLASSES) for _ in range(goodness)),
    )


def handed_on(chunks: list[Chunk], sizes: list[int], receivers: int) -> list[Chunk]:
    """Take the chunks of all senders to all receivers."""
    inboxes: list[list[Chunk]] = [[] for _ in range(receivers)]
    for sender, chunk in zip(all_replicas(len(chunks)), chunks, strict=True):
        pieces = split(chunk, sizes, sender, receivers)
        for receiver, piece in zip(sender.receivers(receivers), pieces, strict=True):
            inboxes[receiver].append(piece)
    return [join(inbox) for inbox in inboxes]


class TestPieces:
    @given(
        path=st.lists(replica_counts, min_size=1, max_size=4),
        sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3),
        shortcut=st.booleans(),
        goodness=st.integers(0, 2),
    )
    def test_tile_every_batch_over_any_row_of_stages(
        self, path: list[int], sizes: list[int], shortcut: bool, goodness: int
    ) -> None:
        whole = [make_batch(size, shortcut=shortcut, goodness=goodness) for size in sizes]
        chunks = [whole]
        for count in path:
            chunks = handed_on(chunks, sizes, count)
            for replica, chunk in zip(all_replicas(count), chunks, strict=True):
                rows = [list(replica.rows(size)) for size in sizes]
                assert [batch.labels.tolist() for batch in chunk] == rows
        (again,) = handed_on(chunks, sizes, 1)
        for before, after in zip(whole, again, strict=True):
            assert torch.equal(after.labels, before.labels)
            assert torch.equal(after.activations.features, before.activations.features)
            if shortcut:
                assert torch.equal(after.activations.shortcut, before.activations.shortcut)  # type: ignore[arg-type]
            assert len(after.goodness) == goodness
            assert all(map(torch.equal, after.goodness, before.goodness))

    def test_a_chunk_between_two_single_actors_is_the_chunk_itself(self) -> None:
        chunk = [make_batch(3)]
        (piece,) = split(chunk, [3], Replica(), 1)
        assert piece is chunk
        assert join([piece]) is chunk

    def test_the_order_of_memory_is_kept(self) -> None:
        features = torch.randn(5, 4, 3, 3).to(memory_format=torch.channels_last)
        batch = Batch(activations=Activations(features=features), labels=torch.arange(5))
        (again,) = handed_on(handed_on([[batch]], [5], 3), [5], 1)
        assert again[0].activations.features.stride() == features.stride()


class TestMerging:
    def test_what_is_counted_adds_up_and_times_are_of_the_stage(self) -> None:
        merged = merge(
            [
                Report(
                    started_s=5, busy_s=1, images=3, loss_sums=(1, 2), hits=np.eye(2, dtype=int)
                ),
                Report(started_s=4, busy_s=2, images=0, loss_sums=(0, 0), sent_bytes=30),
                Report(
                    started_s=6,
                    busy_s=6,
                    images=4,
                    loss_sums=(3, 5),
                    hits=np.ones((2, 2), int),
                    sent_bytes=12,
                ),
            ]
        )
        assert (merged.started_s, merged.busy_s, merged.images) == (4, 3, 7)
        assert merged.loss_sums == (4, 7)
        assert merged.sent_bytes == 42
        assert merged.hits is not None
        assert merged.hits.tolist() == [[2, 1], [1, 2]]

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


class ThreadSum:
    """Adds up over threads that start the same sums in the same order, one of them at a time."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.changed = threading.Condition()
        self.sums: dict[int, list[Tensor]] = {}
        self.sums_of_thread = threading.local()

    def prepare(self, weights: Sequence[Tensor]) -> None:
        """Be ready: it needs to know nothing before."""

    def start(self, weight: Tensor) -> Callable[[], None]:
        gradient = weight.grad
        assert gradient is not None
        own = self.sums_of_thread
        own.number = getattr(own, "number", -1) + 1
        addends = self.sums.setdefault(own.number, [])
        with self.changed:
            addends.append(gradient.clone())
            self.changed.notify_all()

        def wait() -> None:
            with self.changed:
                assert self.changed.wait_for(lambda: len(addends) == self.count, timeout=30)
            gradient.copy_(torch.stack(addends).sum(dim=0))

        return wait


def image_set(num_images: int, seed: int) -> ImageSet:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (num_images, 3, 32, 32), dtype=np.uint8)
    return ImageSet(images=images, labels=generator.integers(0, CLASSES, num_images))


DATA: dict[Split, ImageSet] = {"train": image_set(12, seed=1), "valid": image_set(9, seed=2)}


class ThreadPipeline:
    """Stages of replicas, each replica in a thread of its own while a command is carried out."""

    def __init__(
        self, network: Architecture, cuts: tuple[int, ...], replicas: tuple[int, ...], **how: Any
    ) -> None:
        self.stages: list[list[Stage]] = []
        slices = network.stages(cuts)
        for part, count in zip(slices, replicas, strict=True):
            all_reduce = ThreadSum(count)
            self.stages.append(
                [
                    local_stage(
                        StageSpec(
                            architecture=part,
                            is_last=part is slices[-1],
                            recipe=Recipe(**{"dropout": 0.25, "optimizer": "sgd", **how}),
                            seed=5,
                            precision="fp32",
                            replica=replica,
                        ),
                        CPU,
                        DATA if part is slices[0] else None,
                        all_reduce=all_reduce if count > 1 else None,
                    )
                    for replica in all_replicas(count)
                ]
            )
        self.threads = [[ThreadPoolExecutor(1) for _ in stage] for stage in self.stages]

    def handle(self, command: Command) -> list[Report]:
        sizes = [] if isinstance(command, Snapshot) else [len(b) for b in command.batches]
        reports: list[Report] = []
        chunks: list[Any] = [None] * len(self.stages[0])
        after = [*self.stages[1:], []]
        for stage, threads, following in zip(self.stages, self.threads, after, strict=True):
            calls = [
                thread.submit(replica.handle, command, chunk)
                for replica, thread, chunk in zip(stage, threads, chunks, strict=True)
            ]
            results = [call.result() for call in calls]
            reports.append(merge([report for _, report in results]))
            if sizes and following:
                chunks = handed_on([chunk for chunk, _ in results], sizes, len(following))
            else:
                chunks = [None] * len(following)
        return reports

    def weights(self) -> dict[int, Tensor]:
        """Return all weights; the snapshot checks that replicas agree."""
        reports = self.handle(Snapshot(epoch=0, batch=0))
        states = {index: state for report in reports for index, state in report.states.items()}
        return {index: load(state.tobytes())["weight"] for index, state in states.items()}


def train(*batches: Any, step: int = 0, lr: float = 0.01) -> Train:
    return Train(epoch=0, step=step, lr=lr, batches=tuple(np.array(batch) for batch in batches))


COMMANDS = (
    train((0, 1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11)),
    train((3, 1), (5,), step=2),  # batches that are smaller than the replicas are many
    train((4, 5, 9, 2, 11, 0, 7), step=4),
)


class TestTraining:
    @pytest.fixture(scope="class")
    @classmethod
    def undivided(cls) -> tuple[dict[int, Tensor], list[list[Report]]]:
        pipeline = ThreadPipeline(RESNET, (), (1,))
        reports = [pipeline.handle(command) for command in COMMANDS]
        return pipeline.weights(), reports

    @pytest.mark.parametrize(
        ("cuts", "replicas"),
        [
            ((), (2,)),
            ((), (3,)),
            ((6,), (1, 2)),
            ((6,), (2, 1)),
            ((6,), (2, 3)),
            ((7,), (3, 2)),
            ((2, 9), (2, 2, 4)),
        ],
        ids=str,
    )
    def test_replicas_learn_what_one_actor_learns_up_to_rounding(
        self, cuts: tuple[int, ...], replicas: tuple[int, ...], undivided: Any
    ) -> None:
        pipeline = ThreadPipeline(RESNET, cuts, replicas)
        for command, (expected,) in zip(COMMANDS, undivided[1], strict=True):
            reports = pipeline.handle(command)
            assert [report.images for report in reports] == [expected.images] * len(replicas)
            sums = [each for report in reports for each in report.loss_sums]
            assert sums == pytest.approx(expected.loss_sums, rel=1e-5)
        for index, weight in pipeline.weights().items():
            # sums of floats in another order, in five steps with a learning rate of 0.01
            torch.testing.assert_close(weight, undivided[0][index], rtol=1e-4, atol=1e-6)

    def test_and_it_is_more_than_noise(self, undivided: Any) -> None:
        """A seventh of a batch in the wrong place would move the weights far more."""
        pipeline = ThreadPipeline(RESNET, (), (2,))
        for command in (*COMMANDS[:2], train((4, 5, 9, 2, 11, 0, 8), step=4)):
            pipeline.handle(command)
        moved = [
            (weight - undivided[0][index]).abs().max().item()
            for index, weight in pipeline.weights().items()
        ]
        assert min(moved) > 1e-5

    @pytest.mark.parametrize("replicas", [(2, 3), (3, 12)])
    def test_hits_are_those_of_one_actor(self, replicas: tuple[int, ...]) -> None:
        command = Evaluate(epoch=0, split="valid", batches=(np.arange(7), np.array([7, 8])))
        (expected,) = ThreadPipeline(RESNET, (), (1,)).handle(command)
        reports = ThreadPipeline(RESNET, (6,), replicas).handle(command)
        assert [report.images for report in reports] == [9, 9]
        assert np.array_equal(reports[-1].hits, expected.hits)  # type: ignore[arg-type]

    def test_no_kernel_sees_an_empty_share(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[int] = []
        convolve = torch.nn.functional.conv2d

        def counted(x: Tensor, *args: Any) -> Tensor:
            seen.append(len(x))
            return convolve(x, *args)

        monkeypatch.setattr(torch.nn.functional, "conv2d", counted)
        pipeline = ThreadPipeline(RESNET, (6,), (2, 3))
        pipeline.handle(train((0,)))
        pipeline.handle(Evaluate(epoch=0, split="valid", batches=(np.array([1]),)))
        assert len(seen) == 2 * len(RESNET)
        assert set(seen) == {1}

    def test_the_failure_of_one_replica_leaves_no_other_waiting(self) -> None:
        """The third image is broken, and the second replica of the last stage alone sees it."""
        pipeline = ThreadPipeline(RESNET, (6,), (1, 2))
        onward, _ = pipeline.stages[0][0].handle(train((0, 1, 2, 3)), None)
        assert onward is not None
        onward[0].activations.features[2] = float("nan")
        shares = handed_on([onward], [4], 2)
        calls = [
            thread.submit(stage.handle, train((0, 1, 2, 3)), share)
            for stage, thread, share in zip(
                pipeline.stages[1], pipeline.threads[1], shares, strict=True
            )
        ]
        _, report = calls[0].result(timeout=20)
        assert np.isfinite(report.loss_sums).all()
        with pytest.raises(TrainingDiverged, match="layer 6 became nan at step 0"):
            calls[1].result(timeout=20)


class TestSnapshots:
    def test_the_first_replica_alone_sends_the_bytes(self) -> None:
        pipeline = ThreadPipeline(RESNET[:2], (), (2,))
        snapshot = Snapshot(epoch=0, batch=0)
        first, second = (stage.handle(snapshot, None)[1] for stage in pipeline.stages[0])
        assert sorted(first.states) == [0, 1]
        assert second.states == {}
        assert first.digests == second.digests
        assert sorted(first.digests) == [0, 1]

    def test_a_replica_that_went_astray_is_found(self) -> None:
        pipeline = ThreadPipeline(RESNET[:4], (), (3,))
        pipeline.handle(train((0, 1, 2, 3)))
        weight = pipeline.stages[0][2].learner.chain.cwconvs()[1].weight
        with torch.no_grad():
            weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(9.0))
        with pytest.raises(RunError, match="the replicas of layer 1 "):
            pipeline.handle(Snapshot(epoch=0, batch=0))

    def test_one_actor_needs_no_digest(self) -> None:
        pipeline = ThreadPipeline(RESNET[:1], (), (1,))
        _, report = pipeline.stages[0][0].handle(Snapshot(epoch=0, batch=0), None)
        assert report.digests == {}
