"""A stage against loops written out by hand, bit for bit."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from rayff.config.local_loss import LossConfig
from rayff.data.images import Split
from rayff.engine.commands import Evaluate, Snapshot
from rayff.kernels.cuda_graph import rerun
from rayff.learning.autograd import autograd_step
from rayff.learning.generators import Share
from rayff.learning.layer import CWConv
from rayff.models.architecture import Architecture
from tests.engine.stages import (
    ADDS,
    CLASSES,
    CONCATENATES,
    CPU,
    DATA,
    LR,
    OPENS,
    RESNET,
    SEED,
    TINYCNN,
    evaluate,
    make_stage,
    states_of,
    train,
)
from tests.helpers.losses import LINEAR

MAKE = {
    "sgd": lambda weights: SGD(weights, LR, momentum=0.9, weight_decay=0.01, fused=True),
    "adam": lambda weights: Adam(weights, LR, weight_decay=0.01, fused=True),
    "adamw": lambda weights: AdamW(weights, LR, weight_decay=0.01, fused=True),
}


class ByHand:
    """The whole network, layer by layer, with nothing of a stage or a chain."""

    def __init__(
        self,
        network: Architecture,
        dtype: torch.dtype = torch.float32,
        optimizer: str = "adamw",
        loss: str = "goodness",
    ) -> None:
        self.dtype = dtype
        options: dict[str, Any] = {"dropout": 0.25, "seed": SEED, "dtype": dtype}
        options["loss"] = LossConfig(name=loss)
        self.layers = [CWConv(layer, CLASSES, **options) for layer in network.layers]
        self.optimizers: list[Optimizer] = [
            MAKE[optimizer](layer.parameters()) for layer in self.layers
        ]
        self.has_blocks = network.name == "resnet"

    def train(self, batch: Sequence[int], step: int) -> list[float]:
        images = torch.from_numpy(DATA["train"].images[list(batch)]).float() / 255
        x = F.layer_norm(images, (3, 32, 32)).to(self.dtype)
        labels = torch.from_numpy(DATA["train"].labels[list(batch)])
        losses, shortcut = [], x
        for index, layer in enumerate(self.layers):
            if index in OPENS:
                shortcut = x
            dropout = layer.dropout_state(Share(step=step, batch_size=len(batch)), CPU)
            x, backward = autograd_step(layer, x, labels, len(batch), dropout)
            losses.append(backward().item())
            self.optimizers[index].step()
            x = self.joined(index, x, shortcut)
        return losses

    def joined(self, index: int, x: Tensor, shortcut: Tensor) -> Tensor:
        if not self.has_blocks or index not in ADDS + CONCATENATES:
            return x
        if shortcut.shape[2:] != x.shape[2:]:
            shortcut = F.avg_pool2d(shortcut, 2)
        return x + shortcut if index in ADDS else torch.cat((x, shortcut), dim=1)

    def assert_same_states(self, states: dict[int, bytes]) -> None:
        assert list(states) == list(range(len(self.layers)))
        for index, (layer, optimizer) in enumerate(zip(self.layers, self.optimizers, strict=True)):
            expected = {}
            for name, parameter in layer.named_parameters():
                expected[name] = parameter.detach()
                prefix = "optimizer." if name == "weight" else f"optimizer.{name}."
                for key, value in optimizer.state[parameter].items():
                    expected[prefix + key] = value
            found = load(states[index])
            assert sorted(found) == sorted(expected)
            for name, tensor in expected.items():
                assert torch.equal(found[name], tensor), (index, name)


class TestTraining:
    @pytest.mark.parametrize("network", [TINYCNN, RESNET], ids=["tinycnn", "resnet"])
    @pytest.mark.parametrize(
        ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
    )
    def test_a_chunk_equals_a_loop_over_layers(
        self, network: Architecture, precision: str, dtype: torch.dtype
    ) -> None:
        stage, hand = make_stage(network, precision=precision), ByHand(network, dtype)
        batches = [(0, 1, 2, 3), (7, 4), (11, 9, 8)]
        onward, report = stage.handle(train(*batches, step=3), None)
        losses = [hand.train(batch, 3 + offset) for offset, batch in enumerate(batches)]
        hand.assert_same_states(states_of(stage))
        assert onward is None
        assert report.images == 9
        sums = [4 * a + 2 * b + 3 * c for a, b, c in zip(*losses, strict=True)]
        assert report.loss_sums == pytest.approx(sums, rel=1e-12)
        assert report.hits is None
        assert report.states == {}
        assert report.started_s > 1.7e9
        assert 0 < report.busy_s < 60

    @pytest.mark.parametrize("loss", ["goodness", LINEAR])
    @pytest.mark.parametrize("optimizer", sorted(MAKE))
    def test_layers_and_heads_learn_by_torchs_optimizers_at_the_commands_learning_rate(
        self, loss: str, optimizer: str
    ) -> None:
        stage = make_stage(TINYCNN, optimizer=optimizer, loss=LossConfig(name=loss))
        hand = ByHand(TINYCNN, optimizer=optimizer, loss=loss)
        for step, lr in enumerate((LR, 0.5, 0.001)):
            stage.handle(train((0, 1, 2), step=step, lr=lr), None)
            for own in hand.optimizers:
                own.param_groups[0]["lr"] = lr
            hand.train((0, 1, 2), step)
        hand.assert_same_states(states_of(stage))


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
def test_a_recorded_step_gives_the_same_bits(optimizer: str) -> None:
    """Two chunks of an epoch whose last batch is smaller, and so is not recorded."""
    recordings: list[Callable[[], None]] = []

    def record(work: Callable[[], None]) -> Callable[[], None]:
        recordings.append(work)
        return rerun(work)

    results = []
    for learner in ({}, {"record": record}):
        stage = make_stage(RESNET, rule="fast", batch_size=4, optimizer=optimizer, learner=learner)
        order = np.arange(14)
        reports = [
            stage.handle(train(*parts, step=step, lr=LR / (step + 1)), None)[1]
            for step, parts in ((0, (order[:4], order[4:8])), (2, (order[8:12], order[12:])))
        ]
        results.append(([report.loss_sums for report in reports], states_of(stage)))
    assert len(recordings) == 1
    assert results[0] == results[1]


class TestActivations:
    def test_they_are_of_the_training_dtype_and_the_shortcut_goes_on_inside_a_block_only(
        self,
    ) -> None:
        for cut in range(1, 17):
            stage = make_stage(RESNET[:cut], last=False, precision="bf16")
            onward, _ = stage.handle(train((0, 1)), None)
            assert onward is not None
            activations = onward[0].activations
            assert activations.features.dtype == torch.bfloat16
            inside = any(opens < cut <= opens + 1 for opens in OPENS)
            assert (activations.shortcut is not None) == inside

    def test_a_batch_has_the_images_of_its_indices(self) -> None:
        stage = make_stage(RESNET[:1], last=False)
        onward, _ = stage.handle(evaluate((3, 1), (8,)), None)
        assert onward is not None
        valid = DATA["valid"].labels
        assert [batch.labels.tolist() for batch in onward] == [[valid[3], valid[1]], [valid[8]]]

    def test_a_snapshot_sends_nothing_on(self) -> None:
        stage = make_stage(RESNET[:3], last=False)
        onward, report = stage.handle(Snapshot(epoch=0, batch=0), None)
        assert onward is None
        assert sorted(report.states) == [0, 1, 2]


class TestEvaluation:
    def hits_by_hand(
        self, weights: list[Tensor], split: Split, indices: Sequence[int]
    ) -> list[list[int]]:
        """Evaluate tinycnn with torch's functions alone: 5x5 | pool 5x5 | pool 3x3 | 3x3."""
        images = torch.from_numpy(DATA[split].images[list(indices)]).float() / 255
        labels = torch.from_numpy(DATA[split].labels[list(indices)])
        x = F.layer_norm(images, (3, 32, 32))
        logits = []
        for weight, pool in zip(weights, (False, True, True, False), strict=True):
            x = F.avg_pool2d(x, 2) if pool else x
            h = F.relu(F.conv2d(x, weight, padding=weight.shape[2] // 2))
            logits.append(h.reshape(len(h), CLASSES, -1).mean(dim=2))
            x = F.group_norm(h, CLASSES)
        hits = [[0] * 4 for _ in range(4)]
        for first in range(4):
            for last in range(first, 4):
                total = torch.stack(logits[first : last + 1]).sum(dim=0)
                hits[first][last] = int((total.argmax(dim=1) == labels).sum())
        return hits

    @pytest.mark.parametrize("split", ["valid", "test", "train"])
    def test_hits_are_those_of_a_direct_computation(self, split: Split) -> None:
        stage = make_stage(TINYCNN, dropout=0.0)
        for step in range(40):
            stage.handle(train(range(12), step=step, lr=0.01), None)
        weights = [load(state)["weight"] for _, state in sorted(states_of(stage).items())]
        indices = range(len(DATA[split]))
        onward, report = stage.handle(evaluate(indices[:3], indices[3:], split=split), None)
        assert onward is None
        assert report.images == len(DATA[split])
        assert report.loss_sums == ()
        assert report.hits is not None
        assert report.hits.tolist() == self.hits_by_hand(weights, split, indices)
        if split == "train":  # it has learned something, so the comparison says something
            assert report.hits.max() > 8

    def test_logits_come_of_the_images_asked_for(self) -> None:
        """The stage's share of each batch has some of them, or none."""
        batches, asked = (np.arange(4), np.arange(4, 8)), (np.array([0, 3]), np.array([1]))
        command = Evaluate(epoch=0, split="valid", batches=batches, logits=asked)
        whole = dataclasses.replace(command, logits=(np.arange(4), np.arange(4)))
        (_, some), (_, all_) = (make_stage(TINYCNN).handle(c, None) for c in (command, whole))
        for found, expected, positions in zip(some.logits, all_.logits, asked, strict=True):
            np.testing.assert_array_equal(found, expected[:, positions])
        assert [each.tolist() for each in some.labels] == [
            labels[positions].tolist()
            for labels, positions in zip(all_.labels, asked, strict=True)
        ]

    def test_logits_come_where_they_are_asked_for_and_give_the_hits(self) -> None:
        stage = make_stage(TINYCNN)
        batches, asked = (np.arange(3), np.array([5, 4])), (np.arange(3), np.arange(2))
        command = Evaluate(epoch=0, split="valid", batches=batches, logits=asked)
        onward, report = stage.handle(command, None)
        assert onward is None
        assert [each.shape for each in report.logits] == [(4, 3, CLASSES), (4, 2, CLASSES)]
        assert all(each.dtype == np.float32 for each in report.logits)
        labels = DATA["valid"].labels
        assert [each.tolist() for each in report.labels] == [
            labels[indices].tolist() for indices in batches
        ]
        logits, labels = np.concatenate(report.logits, axis=1), np.concatenate(report.labels)
        for depth in range(4):
            summed = logits[: depth + 1].sum(axis=0)
            assert report.hits is not None
            assert report.hits[0, depth] == (summed.argmax(axis=1) == labels).sum()
        _, quiet = stage.handle(evaluate((0, 1, 2)), None)
        assert quiet.logits == quiet.labels == ()

    def test_evaluation_changes_no_state(self) -> None:
        stage, other = make_stage(TINYCNN), make_stage(TINYCNN)
        before = states_of(stage)
        stage.handle(evaluate((0, 1), (2,)), None)
        assert states_of(stage) == before
        for each in (stage, other):
            each.handle(train((0, 1, 2)), None)
        assert states_of(stage) == states_of(other)
