"""A recorded step against the steps themselves: the same bits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rayff.config.recipe import Recipe
from rayff.kernels.precision import set_deterministic
from rayff.learning.analytic import fast_rule
from rayff.learning.chain import Activations, Chain
from rayff.learning.generators import Share
from rayff.learning.layer import CWConv
from rayff.learning.optimizers import LayerOptimizer, layer_state
from rayff.learning.recorded import Record, RecordedEvaluation, RecordedStep, cuda_graph, rerun
from rayff.learning.rules import RULES
from rayff.models.zoo import architecture


class Side:
    """A slice of a narrow resnet with its optimizers: it begins inside a block."""

    def __init__(self, device: torch.device, optimizer: str) -> None:
        set_deterministic()
        # on a GPU bfloat16 and 20 channels, whose memory has gaps
        on_gpu = device.type == "cuda"
        width, dtype = (20, torch.bfloat16) if on_gpu else (4, torch.float32)
        whole = architecture("resnet", num_classes=2, image_channels=1, width=width)
        chain = Chain.build(whole[2:7], dropout=0.2, seed=3, dtype=dtype).to(device)
        self.chain = RULES["fast"].arrange(chain)
        recipe = Recipe(optimizer=optimizer, lr=0.01)  # type: ignore[arg-type]
        self.optimizers = {
            layer.spec.index: LayerOptimizer(layer, recipe) for layer in self.chain.cwconvs()
        }

    def set_lr(self, lr: float) -> None:
        for optimizer in self.optimizers.values():
            optimizer.set_lr(lr)

    def step(
        self, activations: Activations, labels: Tensor, share: Share
    ) -> tuple[Activations, Tensor]:
        losses = []

        def visit(layer: CWConv, x: Tensor) -> Tensor:
            features, loss = fast_rule(layer, x, labels, share)
            self.optimizers[layer.spec.index].step()
            losses.append(loss)
            return features

        return self.chain.walk(activations, visit), torch.stack(losses)

    def state(self) -> dict[str, Tensor]:
        return {
            f"{layer.spec.index} {name}": value.clone()
            for layer in self.chain.cwconvs()
            for name, value in layer_state(layer, self.optimizers[layer.spec.index]).items()
        }


def batch(number: int, device: torch.device) -> tuple[Activations, Tensor, Share]:
    generator = torch.Generator().manual_seed(number)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    width = 20 if device.type == "cuda" else 4
    features, shortcut = (
        torch.randn(6, width, 32, 32, generator=generator)
        .to(device, dtype)
        .to(memory_format=torch.channels_last)
        for _ in range(2)
    )
    labels = torch.randint(2, (6,), generator=generator).to(device)
    activations = Activations(features=features, shortcut=shortcut)
    return activations, labels, Share(step=number, batch_size=6)


def again_without_a_memory(work: Callable[[], None]) -> Callable[[], None]:
    """A recording that runs the work a few times before, as a graph's warm-up does."""
    for _ in range(4):
        work()
    return work


CASES = [
    pytest.param(torch.device("cpu"), rerun, id="rerun"),
    pytest.param(torch.device("cpu"), again_without_a_memory, id="with warm-ups"),
    pytest.param(
        torch.device("cuda"),
        cuda_graph,
        id="cuda graph",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


@pytest.mark.parametrize("optimizer", ["adamw", "adam"])
@pytest.mark.parametrize(("device", "record"), CASES)
@pytest.mark.parametrize("steps_before", [0, 2])
def test_replays_give_the_bits_of_the_steps(
    device: torch.device, record: Record, optimizer: str, steps_before: int
):
    plain, replayed = Side(device, optimizer), Side(device, optimizer)
    for side in (plain, replayed):
        for number in range(steps_before):
            side.step(*batch(number, device))
    activations, labels, _ = batch(99, device)
    step = RecordedStep(replayed.chain, replayed.optimizers, activations, labels, record)
    kept = []
    for number in range(2, 6):
        for side in (plain, replayed):
            side.set_lr(0.01 / number)
        expected, losses = plain.step(*batch(number, device))
        found, found_losses = step(*batch(number, device))
        assert torch.equal(torch.stack(found_losses), losses)
        kept.append((found.features, expected.features.clone()))
    # what a replay returned stays, though the next one writes to the same memory
    assert all(torch.equal(*pair) for pair in kept)
    expected_state, found_state = plain.state(), replayed.state()
    assert found_state.keys() == expected_state.keys()
    assert all(torch.equal(found_state[name], expected_state[name]) for name in expected_state)


def test_the_batch_of_the_recording_is_not_learned_from():
    side = Side(torch.device("cpu"), "adamw")
    before = side.state()
    activations, labels, _ = batch(0, torch.device("cpu"))
    RecordedStep(side.chain, side.optimizers, activations, labels, again_without_a_memory)
    after = side.state()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(not after[name].any() for name in after.keys() - before.keys())


@pytest.mark.parametrize(("device", "record"), CASES)
def test_recorded_evaluations_give_the_bits_of_evaluations(device: torch.device, record: Record):
    side = Side(device, "adamw")
    classify = RULES["fast"].classify
    evaluation = RecordedEvaluation(side.chain, classify, batch(99, device)[0], record)
    kept = []
    for number in range(3):
        side.step(*batch(number, device))  # a recording sees the weights of the moment
        activations, _, _ = batch(10 + number, device)
        expected, goodness = side.chain.evaluate(activations, classify)
        found, found_goodness = evaluation(activations)
        kept.append((found.features, expected.features.clone()))
        kept.append((torch.stack(found_goodness), torch.stack(goodness)))
        assert (found.shortcut is None) == (expected.shortcut is None)
    assert all(torch.equal(*pair) for pair in kept)
