"""A stage against loops written out by hand, bit for bit."""

import hashlib
import pickle  # noqa: TID251 - strangers' files are made with it
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from rayff.config.errors import TrainingDiverged, UserError
from rayff.config.recipe import Recipe
from rayff.data.images import ImageSet
from rayff.engine.commands import Batch, Chunk, Evaluate, Report, Snapshot, Split, Train
from rayff.engine.learner import StageSpec
from rayff.engine.pipeline import LocalPipeline
from rayff.engine.stage import Stage, local_stage
from rayff.learning.autograd import local_step, plain_rule
from rayff.learning.layer import CWConv
from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture

CPU = torch.device("cpu")
CLASSES = 4
SEED = 5
LR = 0.02
TINYCNN = architecture("tinycnn", num_classes=CLASSES, image_channels=3, width=4)
RESNET = architecture("resnet", num_classes=CLASSES, image_channels=3, width=4)

# DeeperForward, section 4: in a group the second layer adds the block's input and the fourth
# concatenates it; behind the last group nothing is joined.
OPENS = (1, 3, 5, 7, 9, 11, 13)
ADDS, CONCATENATES = (2, 6, 10, 14), (4, 8, 12)


def image_set(num_images: int, seed: int) -> ImageSet:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (num_images, 3, 32, 32), dtype=np.uint8)
    labels = generator.integers(0, CLASSES, num_images)
    return ImageSet(images=images, labels=labels)


DATA: dict[Split, ImageSet] = {
    "train": image_set(12, seed=1),
    "valid": image_set(9, seed=2),
    "test": image_set(4, seed=3),
}


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{"lr": LR, "dropout": 0.25, "weight_decay": 0.01, **changes})


def make_stage(
    network: Architecture,
    *,
    first: bool = True,
    last: bool = True,
    precision: str = "fp32",
    states: dict[int, NDArray[np.uint8]] | None = None,
    data: dict[Split, ImageSet] = DATA,
    **changes: Any,
) -> Stage:
    spec = StageSpec(
        architecture=network,
        is_last=last,
        recipe=recipe(**changes),
        seed=SEED,
        precision=precision,
        rule="plain",
    )
    return local_stage(spec, CPU, data if first else None, states)


def train(*batches: Sequence[int], step: int = 0, lr: float = LR) -> Train:
    return Train(epoch=0, step=step, lr=lr, batches=tuple(np.array(batch) for batch in batches))


def evaluate(*batches: Sequence[int], split: Split = "valid") -> Evaluate:
    return Evaluate(epoch=0, split=split, batches=tuple(np.array(batch) for batch in batches))


def states_of(*stages: Stage) -> dict[int, bytes]:
    """Return weights and optimizer state of all layers, byte for byte."""
    snapshot = Snapshot(epoch=0, batch=0)
    reports = [stage.handle(snapshot, None)[1] for stage in stages]
    return {index: state.tobytes() for report in reports for index, state in report.states.items()}


def as_arrays(states: dict[int, bytes]) -> dict[int, NDArray[np.uint8]]:
    return {index: np.frombuffer(state, dtype=np.uint8) for index, state in states.items()}


def digest(*tensors: Tensor | NDArray[Any] | None) -> str:
    whole = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            array = tensor.numpy() if isinstance(tensor, Tensor) else tensor
            whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def chunk_digest(chunk: Chunk) -> str:
    return digest(
        *(
            tensor
            for batch in chunk
            for tensor in (
                batch.activations.features,
                batch.activations.shortcut,
                batch.labels,
                *batch.goodness,
            )
        )
    )


class ByHand:
    """The whole network, layer by layer, with nothing of a stage or a chain."""

    def __init__(self, network: Architecture, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.layers = [
            CWConv(layer, CLASSES, dropout=0.25, seed=SEED, dtype=dtype)
            for layer in network.layers
        ]
        self.optimizers: list[Optimizer] = [
            AdamW([layer.weight], LR, weight_decay=0.01, fused=True) for layer in self.layers
        ]
        self.joins = network.name == "resnet"

    def enter(self, split: Split, batch: Sequence[int]) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(DATA[split].images[list(batch)]).float() / 255
        x = F.layer_norm(images, (3, 32, 32)).to(self.dtype)
        return x, torch.from_numpy(DATA[split].labels[list(batch)])

    def train(self, batch: Sequence[int], step: int) -> list[float]:
        x, labels = self.enter("train", batch)
        losses, shortcut = [], x
        for index, layer in enumerate(self.layers):
            if index in OPENS:
                shortcut = x
            x, loss = local_step(plain_rule, layer, self.optimizers[index], x, labels, step)
            losses.append(loss.item())
            x = self.joined(index, x, shortcut)
        return losses

    def joined(self, index: int, x: Tensor, shortcut: Tensor) -> Tensor:
        if not self.joins or index not in ADDS + CONCATENATES:
            return x
        if shortcut.shape[2:] != x.shape[2:]:
            shortcut = F.avg_pool2d(shortcut, 2)
        return x + shortcut if index in ADDS else torch.cat((x, shortcut), dim=1)

    def states(self) -> list[dict[str, Tensor]]:
        return [
            {"weight": layer.weight.detach()}
            | {f"optimizer.{k}": v for k, v in optimizer.state[layer.weight].items()}
            for layer, optimizer in zip(self.layers, self.optimizers, strict=True)
        ]


def assert_same_states(states: dict[int, bytes], expected: list[dict[str, Tensor]]) -> None:
    assert list(states) == list(range(len(expected)))
    for index, own in enumerate(expected):
        loaded = load(states[index])
        assert sorted(loaded) == sorted(own)
        for name, tensor in own.items():
            assert torch.equal(loaded[name], tensor), (index, name)


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
        assert_same_states(states_of(stage), hand.states())
        assert onward is None
        assert report.images == 9
        sums = [4 * a + 2 * b + 3 * c for a, b, c in zip(*losses, strict=True)]
        assert report.loss_sums == pytest.approx(sums, rel=1e-12)
        assert report.hits is None
        assert report.states == {}

    def test_the_learning_rate_is_the_commands(self) -> None:
        stage, hand = make_stage(TINYCNN), ByHand(TINYCNN)
        for step, lr in enumerate((0.5, 0.001)):
            stage.handle(train((0, 1), step=step, lr=lr), None)
            for optimizer in hand.optimizers:
                optimizer.param_groups[0]["lr"] = lr
            hand.train((0, 1), step)
        assert_same_states(states_of(stage), hand.states())

    @pytest.mark.parametrize("parts", [((0, 1), (2, 3)), ((0, 1, 2), (3,)), ((0,), (1, 2, 3))])
    def test_the_chunk_changes_nothing(self, parts: tuple[tuple[int, ...], ...]) -> None:
        batches = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9,)]
        whole, parted = make_stage(TINYCNN), make_stage(TINYCNN)
        _, report = whole.handle(train(*batches), None)
        reports = [
            parted.handle(train(*(batches[i] for i in part), step=part[0]), None)[1]
            for part in parts
        ]
        assert states_of(parted) == states_of(whole)
        sums = np.sum([r.loss_sums for r in reports], axis=0)
        assert report.loss_sums == pytest.approx(sums, rel=1e-12)
        assert report.images == sum(r.images for r in reports) == 10

    def test_the_optimizers_are_those_of_torch(self) -> None:
        batch = (0, 1, 2)
        made: dict[str, Any] = {
            "sgd": lambda w: SGD([w], LR, momentum=0.9, weight_decay=0.01, fused=True),
            "adam": lambda w: Adam([w], LR, weight_decay=0.01, fused=True),
            "adamw": lambda w: AdamW([w], LR, weight_decay=0.01, fused=True),
        }
        for name, make in made.items():
            stage, hand = make_stage(TINYCNN, optimizer=name), ByHand(TINYCNN)
            hand.optimizers = [make(layer.weight) for layer in hand.layers]
            for step in range(3):
                stage.handle(train(batch, step=step), None)
                hand.train(batch, step)
            assert_same_states(states_of(stage), hand.states())

    def test_what_goes_on_is_not_touched_by_later_training(self) -> None:
        stage = make_stage(RESNET[:4], last=False)
        onward, _ = stage.handle(train((0, 1), (2, 3)), None)
        assert onward is not None
        before = chunk_digest(onward)
        stage.handle(train((4, 5), step=2), None)
        assert chunk_digest(onward) == before

    def test_time_is_told(self) -> None:
        _, report = make_stage(TINYCNN).handle(train((0, 1)), None)
        assert report.started_s > 1.7e9
        assert 0 < report.busy_s < 60


class TestStagesInARow:
    @pytest.fixture(scope="class")
    @classmethod
    def one(cls) -> tuple[dict[int, bytes], list[Report]]:
        return cls.run([make_stage(RESNET)])

    @staticmethod
    def run(stages: list[Stage]) -> tuple[dict[int, bytes], list[Report]]:
        """Train, evaluate, train; return all bits of the states and what the ends report."""
        commands = [
            train((0, 1, 2), (3, 4)),
            evaluate((0, 1, 2, 3, 4), (5, 6, 7, 8)),
            train((5, 6), step=2),
        ]
        results = list(LocalPipeline(stages).stream(commands))
        assert [command for command, _ in results] == commands
        merged = []
        for _, reports in results:
            sums = sum((report.loss_sums for report in reports), ())
            assert len({report.images for report in reports}) == 1
            assert all(report.hits is None for report in reports[:-1])
            merged.append(
                Report(
                    started_s=0.0,
                    busy_s=0.0,
                    images=reports[0].images,
                    loss_sums=sums,
                    hits=reports[-1].hits,
                )
            )
        return states_of(*stages), merged

    def check(
        self, cuts: tuple[int, ...], one: tuple[dict[int, bytes], list[Report]], **changes: Any
    ) -> None:
        slices = RESNET.stages(cuts)
        stages = [
            make_stage(part, first=part is slices[0], last=part is slices[-1], **changes)
            for part in slices
        ]
        states, reports = self.run(stages)
        assert states == one[0]
        for report, expected in zip(reports, one[1], strict=True):
            assert report.images == expected.images
            assert report.loss_sums == expected.loss_sums
            assert np.array_equal(report.hits, expected.hits)  # type: ignore[arg-type]

    @pytest.mark.parametrize("cut", range(1, 17))
    def test_every_cut_gives_the_same_bits(
        self, cut: int, one: tuple[dict[int, bytes], list[Report]]
    ) -> None:
        self.check((cut,), one)

    @pytest.mark.parametrize("cuts", [(2, 7, 12), tuple(range(1, 17))], ids=["4", "17"])
    def test_many_stages_give_the_same_bits(
        self, cuts: tuple[int, ...], one: tuple[dict[int, bytes], list[Report]]
    ) -> None:
        self.check(cuts, one)

    def test_in_bfloat16_as_well(self) -> None:
        one = self.run([make_stage(RESNET, precision="bf16")])
        self.check((2, 7, 12), one, precision="bf16")

    def test_features_cross_in_the_training_dtype_and_the_shortcut_only_inside_a_block(
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


class TestEvaluation:
    def hits_by_hand(
        self, weights: list[Tensor], split: Split, indices: Sequence[int]
    ) -> list[list[int]]:
        """Work tinycnn out with torch's functions alone: 5x5 | pool 5x5 | pool 3x3 | 3x3."""
        images = torch.from_numpy(DATA[split].images[list(indices)]).float() / 255
        labels = torch.from_numpy(DATA[split].labels[list(indices)])
        x = F.layer_norm(images, (3, 32, 32))
        goodness = []
        for weight, pool in zip(weights, (False, True, True, False), strict=True):
            x = F.avg_pool2d(x, 2) if pool else x
            h = F.relu(F.conv2d(x, weight, padding=weight.shape[2] // 2))
            groups = h.reshape(len(h), CLASSES, -1)
            goodness.append(groups.mean(dim=2))
            x = F.group_norm(h, CLASSES)
        hits = [[0] * 4 for _ in range(4)]
        for first in range(4):
            for last in range(first, 4):
                total = goodness[first]
                for layer in goodness[first + 1 : last + 1]:
                    total = total + layer
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

    def test_evaluation_leaves_no_trace(self) -> None:
        stage, other = make_stage(TINYCNN), make_stage(TINYCNN)
        before = states_of(stage)
        stage.handle(evaluate((0, 1), (2,)), None)
        assert states_of(stage) == before
        for each in (stage, other):
            each.handle(train((0, 1, 2)), None)
        assert states_of(stage) == states_of(other)


class TestDivergence:
    @pytest.mark.parametrize("layer", range(4))
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_the_first_layer_that_is_not_finite_is_named(self, layer: int, value: float) -> None:
        stage = make_stage(TINYCNN)
        stage.learner.chain.cwconvs()[layer].weight.data.fill_(value)
        with pytest.raises(TrainingDiverged) as caught:
            stage.handle(train((0, 1), (2, 3), step=40), None)
        assert (caught.value.layer_index, caught.value.step) == (layer, 40)
        assert not np.isfinite(caught.value.loss)
        assert f"layer {layer} " in str(caught.value)
        assert "step 40" in str(caught.value)
        assert "--lr" in str(caught.value)

    def test_layers_are_numbered_by_the_whole_network(self) -> None:
        stage = make_stage(RESNET[7:], first=False)
        stage.learner.chain.cwconvs()[2].weight.data.fill_(float("nan"))
        chunk, _ = make_stage(RESNET[:7], last=False).handle(train((0, 1)), None)
        with pytest.raises(TrainingDiverged, match="layer 9 became nan at step 0"):
            stage.handle(train((0, 1)), chunk)

    def test_a_learning_rate_that_is_far_too_high_shows_in_the_next_batch(self) -> None:
        stage = make_stage(TINYCNN)
        with pytest.raises(TrainingDiverged) as caught:
            stage.handle(train((0, 1), (2, 3), (4, 5), step=10, lr=3e38), None)
        assert (caught.value.layer_index, caught.value.step) == (0, 11)

    @pytest.mark.parametrize("offset", [0, 1, 2])
    def test_the_batch_of_the_chunk_is_named(self, offset: int) -> None:
        before = make_stage(TINYCNN[:2], last=False)
        chunk, _ = before.handle(train((0, 1), (2, 3), (4, 5)), None)
        assert chunk is not None
        chunk[offset].activations.features[1, 3, 2, 2] = float("nan")
        stage = make_stage(TINYCNN[2:], first=False)
        with pytest.raises(TrainingDiverged) as caught:
            stage.handle(train((0, 1), (2, 3), (4, 5), step=7), chunk)
        assert (caught.value.layer_index, caught.value.step) == (2, 7 + offset)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite_are_no_snapshot(self, value: float) -> None:
        """The last batch's loss was finite: the next one's would not be."""
        stage = make_stage(RESNET[7:], first=False)
        chunk, _ = make_stage(RESNET[:7], last=False).handle(train((0, 1), (2, 3), step=4), None)
        stage.handle(train((0, 1), (2, 3), step=4), chunk)
        stage.learner.chain.cwconvs()[2].weight.data[1, 0, 1, 1] = value
        with pytest.raises(TrainingDiverged, match="layer 9 became nan at step 6"):
            stage.handle(Snapshot(epoch=0, batch=6), None)

    def test_the_error_survives_pickling(self) -> None:
        error = TrainingDiverged(9, 1234, float("inf"))
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is TrainingDiverged
        assert isinstance(again, UserError)
        assert (again.layer_index, again.step, again.loss) == (9, 1234, float("inf"))
        assert str(again) == str(error)
        assert "layer 9" in str(again)


class TestSnapshots:
    @pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
    @pytest.mark.parametrize("steps", [0, 1, 3])
    def test_a_restored_stage_goes_on_with_the_same_bits(self, optimizer: str, steps: int) -> None:
        batches = [(0, 1, 2), (3, 4), (5, 6, 7), (8, 9), (10, 11)]
        stage = make_stage(TINYCNN, optimizer=optimizer)
        for step in range(steps):
            stage.handle(train(batches[step], step=step), None)
        saved = states_of(stage)
        other = make_stage(TINYCNN, optimizer=optimizer, states=as_arrays(saved))
        assert states_of(other) == saved
        for each in (stage, other):
            each.handle(train(batches[3], batches[4], step=steps), None)
        assert states_of(other) == states_of(stage)
        assert states_of(other) != saved

    def test_the_file_holds_weight_and_optimizer_state(self) -> None:
        stage = make_stage(TINYCNN)
        stage.handle(train((0, 1)), None)
        names = ["optimizer.exp_avg", "optimizer.exp_avg_sq", "optimizer.step", "weight"]
        shapes = [(4, 3, 5, 5), (8, 4, 5, 5), (16, 8, 3, 3), (16, 16, 3, 3)]
        for state, shape in zip(states_of(stage).values(), shapes, strict=True):
            tensors = load(state)
            assert sorted(tensors) == names
            assert tensors["weight"].shape == tensors["optimizer.exp_avg"].shape == shape
            assert tensors["optimizer.step"].item() == 1

    def test_a_snapshot_does_not_move_with_later_training(self) -> None:
        stage = make_stage(TINYCNN)
        _, report = stage.handle(Snapshot(epoch=0, batch=0), None)
        before = digest(*report.states.values())
        stage.handle(train((0, 1)), None)
        assert digest(*report.states.values()) == before

    def test_a_snapshot_sends_nothing_on(self) -> None:
        onward, report = make_stage(RESNET[:3], last=False).handle(
            Snapshot(epoch=0, batch=0), None
        )
        assert onward is None
        assert sorted(report.states) == [0, 1, 2]

    def test_a_slice_restores_its_own_layers_of_the_whole(self) -> None:
        whole = make_stage(RESNET)
        whole.handle(train((0, 1)), None)
        saved = states_of(whole)
        part = make_stage(RESNET[5:9], first=False, last=False, states=as_arrays(saved))
        assert states_of(part) == {index: saved[index] for index in range(5, 9)}

    def test_layers_of_another_width_are_refused(self) -> None:
        wider = architecture("tinycnn", num_classes=CLASSES, image_channels=3, width=8)
        states = as_arrays(states_of(make_stage(wider)))
        with pytest.raises(UserError, match=r"\(8, 3, 5, 5\) for layer 0.*\(4, 3, 5, 5\)"):
            make_stage(TINYCNN, states=states)


class TestInputsAreNotModified:
    def test_images_indices_and_states(self) -> None:
        saved = as_arrays(states_of(make_stage(TINYCNN)))
        data: dict[Split, ImageSet] = {s: d.take(np.arange(len(d))) for s, d in DATA.items()}
        commands = [train((0, 1), (2, 3)), evaluate((0, 1, 2))]
        inputs = [
            *(array for part in data.values() for array in (part.images, part.labels)),
            *saved.values(),
            *(batch for command in commands for batch in command.batches),
        ]
        before = digest(*inputs)
        stage = make_stage(TINYCNN, data=data, states=saved)
        for command in commands:
            stage.handle(command, None)
        assert digest(*inputs) == before

    def test_the_images_are_copied(self) -> None:
        data: dict[Split, ImageSet] = {s: d.take(np.arange(len(d))) for s, d in DATA.items()}
        stage = make_stage(TINYCNN, data=data)
        data["train"].images[:] = 0
        data["train"].labels[:] = 0
        stage.handle(train((0, 1)), None)
        other = make_stage(TINYCNN)
        other.handle(train((0, 1)), None)
        assert states_of(stage) == states_of(other)

    @pytest.mark.parametrize("cut", [1, 2, 4, 8, 13])
    @pytest.mark.parametrize("command", [train((0, 1), (2, 3)), evaluate((0, 1), (2, 3))])
    def test_the_chunk_of_the_stage_before(self, cut: int, command: Train | Evaluate) -> None:
        chunk, _ = make_stage(RESNET[:cut], last=False).handle(command, None)
        assert chunk is not None
        before = chunk_digest(chunk)
        onward, _ = make_stage(RESNET[cut : cut + 3], first=False, last=False).handle(
            command, list(chunk)
        )
        assert chunk_digest(chunk) == before
        assert onward is not None
        assert [batch.labels.tolist() for batch in onward] == [b.labels.tolist() for b in chunk]

    def test_data_that_may_not_be_written_is_taken(self) -> None:
        data: dict[Split, ImageSet] = {s: d.take(np.arange(len(d))) for s, d in DATA.items()}
        for part in data.values():
            part.images.setflags(write=False)
            part.labels.setflags(write=False)
        make_stage(TINYCNN, data=data).handle(train((0, 1)), None)


def test_a_batch_is_of_what_the_indices_say() -> None:
    stage = make_stage(RESNET[:1], last=False)
    onward, _ = stage.handle(evaluate((3, 1), (8,)), None)
    assert onward is not None
    assert isinstance(onward[0], Batch)
    labels = [batch.labels.tolist() for batch in onward]
    valid = DATA["valid"].labels
    assert labels == [[valid[3], valid[1]], [valid[8]]]
