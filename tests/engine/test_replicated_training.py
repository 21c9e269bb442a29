"""Replicas in threads of one process that sum their gradients, against one actor."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from rayff.config.errors import RunError, TrainingDiverged
from rayff.config.local_loss import LossConfig
from rayff.engine.commands import Command, Evaluate, Report, Snapshot
from rayff.engine.replicas import merge
from rayff.engine.stage import Stage
from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture
from tests.engine.stages import (
    CLASSES,
    RESNET,
    all_replicas,
    exchange,
    make_stage,
    train,
    weight_of,
)
from tests.helpers.augmentations import DARKEN
from tests.helpers.losses import LINEAR
from tests.helpers.modules import HERE

MODULES = architecture(f"{HERE}:per_image", num_classes=CLASSES, image_channels=3)


class ThreadSum:
    """Sums over threads that start the same sums in the same order, one of them at a time."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.changed = threading.Condition()
        self.sums: dict[int, list[Tensor]] = {}
        self.sums_of_thread = threading.local()

    def __call__(self, parameter: nn.Parameter) -> Callable[[], None]:
        gradient = parameter.grad
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


class ThreadPipeline:
    """Stages of replicas, each replica in a thread of its own while it handles a command."""

    def __init__(
        self, network: Architecture, cuts: tuple[int, ...], replicas: tuple[int, ...], **how: Any
    ) -> None:
        self.stages: list[list[Stage]] = []
        slices = network.stages(cuts)
        for part, count in zip(slices, replicas, strict=True):
            learner = {"all_reduce": ThreadSum(count)} if count > 1 else {}
            self.stages.append(
                [
                    make_stage(
                        part,
                        first=part is slices[0],
                        last=part is slices[-1],
                        replica=replica,
                        learner=learner,
                        **{"optimizer": "sgd", "weight_decay": 5e-4, "rule": "fast", **how},
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
                chunks = exchange([chunk for chunk, _ in results], sizes, len(following))
            else:
                chunks = [None] * len(following)
        return reports

    def parameters(self) -> dict[tuple[int, str], Tensor]:
        """Return all parameters; the snapshot checks that replicas agree."""
        reports = self.handle(Snapshot(epoch=0, batch=0))
        return {
            (index, name): value
            for report in reports
            for index, state in report.states.items()
            for name, value in load(state.tobytes()).items()
            if not name.startswith("optimizer")
        }


LR = 0.01
COMMANDS = (
    train((0, 1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11), lr=LR),
    train((3, 1), (5,), step=2, lr=LR),  # batches that are smaller than the replicas are many
    train((4, 5, 9, 2, 11, 0, 7), step=4, lr=LR),
)

Trained = tuple[dict[tuple[int, str], Tensor], list[list[Report]]]


def trained(pipeline: ThreadPipeline) -> Trained:
    reports = [pipeline.handle(command) for command in COMMANDS]
    return pipeline.parameters(), reports


def assert_alike(found: Trained, expected: Trained) -> None:
    for reports, (report,) in zip(found[1], expected[1], strict=True):
        assert all(each.images == report.images for each in reports)
        sums = [each for report in reports for each in report.loss_sums]
        assert sums == pytest.approx(report.loss_sums, rel=1e-5)
    for name, value in found[0].items():
        # sums of floats in another order, in five steps with a learning rate of 0.01
        torch.testing.assert_close(value, expected[0][name], rtol=1e-4, atol=1e-6)


class TestTraining:
    @pytest.fixture(scope="class")
    @classmethod
    def undivided(cls) -> Trained:
        return trained(ThreadPipeline(RESNET, (), (1,)))

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
        self, cuts: tuple[int, ...], replicas: tuple[int, ...], undivided: Trained
    ) -> None:
        assert_alike(trained(ThreadPipeline(RESNET, cuts, replicas)), undivided)

    def test_the_tolerance_is_below_the_effect_of_one_image(self, undivided: Trained) -> None:
        pipeline = ThreadPipeline(RESNET, (), (2,))
        for command in (*COMMANDS[:2], train((4, 5, 9, 2, 11, 0, 8), step=4, lr=LR)):
            pipeline.handle(command)
        moved = [
            (value - undivided[0][name]).abs().max().item()
            for name, value in pipeline.parameters().items()
        ]
        assert min(moved) > 1e-5

    @pytest.mark.parametrize("augment", ["crop:4,flip,cutout:8,translate:2", f"flip,{DARKEN}"])
    def test_heads_and_augmented_batches_too(self, augment: str) -> None:
        how = {"rule": "plain", "loss": LossConfig(name=LINEAR), "augment": augment}
        whole = trained(ThreadPipeline(RESNET, (), (1,), **how))
        assert_alike(trained(ThreadPipeline(RESNET, (6,), (3, 2), **how)), whole)

    def test_what_is_clipped_is_the_sum_of_the_replicas(self) -> None:
        """A sum of clipped gradients would be longer, and another learning rate would show."""
        how = {"loss": LossConfig(name="linear"), "clip_norm": 0.01, "lr_scale": 0.25}
        whole = trained(ThreadPipeline(RESNET, (), (1,), **how))
        assert_alike(trained(ThreadPipeline(RESNET, (6,), (3, 2), **how)), whole)
        free = trained(ThreadPipeline(RESNET, (), (1,), **{**how, "clip_norm": None}))
        assert min((free[0][name] - whole[0][name]).abs().max() for name in whole[0]) > 1e-5

    def test_modules_that_compute_each_image_by_itself_too(self) -> None:
        how = {"rule": "plain", "loss": LossConfig(name="linear"), "dropout": 0.25}
        whole = trained(ThreadPipeline(MODULES, (), (1,), **how))
        assert (2, "module.scale") in whole[0]
        assert_alike(trained(ThreadPipeline(MODULES, (1,), (3, 2), **how)), whole)

    @pytest.mark.parametrize("replicas", [(2, 3), (3, 12)])
    def test_hits_are_those_of_one_actor(self, replicas: tuple[int, ...]) -> None:
        command = Evaluate(epoch=0, split="valid", batches=(np.arange(7), np.array([7, 8])))
        (expected,) = ThreadPipeline(RESNET, (), (1,)).handle(command)
        reports = ThreadPipeline(RESNET, (6,), replicas).handle(command)
        assert [report.images for report in reports] == [9, 9]
        assert np.array_equal(reports[-1].hits, expected.hits)  # type: ignore[arg-type]

    @pytest.mark.parametrize("replicas", [(2, 3), (3, 12)])
    def test_so_are_the_logits_up_to_rounding(self, replicas: tuple[int, ...]) -> None:
        batches = (np.arange(7), np.array([7, 8]))
        asked = (np.array([0, 2, 3, 6]), np.array([0]))
        command = Evaluate(epoch=0, split="valid", batches=batches, logits=asked)
        (expected,) = ThreadPipeline(RESNET, (), (1,)).handle(command)
        first, last = ThreadPipeline(RESNET, (6,), replicas).handle(command)
        assert first.logits == first.labels == ()
        assert [each.shape for each in last.logits] == [(17, 4, 4), (17, 1, 4)]
        for name in ("logits", "labels"):
            for found, own in zip(getattr(last, name), getattr(expected, name), strict=True):
                np.testing.assert_allclose(found, own, rtol=1e-4, atol=1e-6)

    def test_the_failure_of_one_replica_leaves_no_other_waiting(self) -> None:
        """The third image is broken, and only the second replica of the last stage has it."""
        pipeline = ThreadPipeline(RESNET, (6,), (1, 2))
        onward, _ = pipeline.stages[0][0].handle(train((0, 1, 2, 3)), None)
        assert onward is not None
        onward[0].activations.features[2] = float("nan")
        shares = exchange([onward], [4], 2)
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
    def test_only_the_first_replica_sends_the_bytes(self) -> None:
        pipeline = ThreadPipeline(RESNET[:2], (), (2,))
        snapshot = Snapshot(epoch=0, batch=0)
        first, second = (stage.handle(snapshot, None)[1] for stage in pipeline.stages[0])
        assert sorted(first.states) == [0, 1]
        assert second.states == {}
        assert first.digests == second.digests
        assert sorted(first.digests) == [0, 1]

    def test_a_replica_whose_weights_differ_is_found(self) -> None:
        pipeline = ThreadPipeline(RESNET[:4], (), (3,))
        pipeline.handle(train((0, 1, 2, 3)))
        weight = weight_of(pipeline.stages[0][2], 1)
        weight[0, 0, 0, 0] = torch.nextafter(weight[0, 0, 0, 0], torch.tensor(9.0))
        with pytest.raises(RunError, match="the replicas of layer 1 "):
            pipeline.handle(Snapshot(epoch=0, batch=0))

    def test_one_actor_needs_no_digest(self) -> None:
        pipeline = ThreadPipeline(RESNET[:1], (), (1,))
        _, report = pipeline.stages[0][0].handle(Snapshot(epoch=0, batch=0), None)
        assert report.digests == {}
