"""A recorded step and evaluation against eager ones: the same bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rayff.config.local_loss import GOODNESS, LossConfig
from rayff.config.recipe import Recipe
from rayff.kernels.cuda_graph import Record, cuda_graph, rerun
from rayff.kernels.precision import set_deterministic
from rayff.learning.analytic import analytic_forward, analytic_step
from rayff.learning.chain import Activations, Chain
from rayff.learning.generators import Share
from rayff.learning.layer_state import layer_state
from rayff.learning.lr_schedule import layer_factor
from rayff.learning.optimizers import optimizer_class
from rayff.learning.recorded import RecordedEvaluation, RecordedStep
from rayff.learning.step import ChainStep
from rayff.learning.updates import ImmediateUpdates, SideStreamUpdates
from rayff.models.zoo import architecture

CLASSES = 2
IMAGES = 6


class Trained:
    """A slice of a narrow resnet that begins inside a block, with its optimizers."""

    def __init__(
        self, device: torch.device, optimizer: str, loss: LossConfig = GOODNESS, **recipe: Any
    ) -> None:
        set_deterministic()
        self.device = device
        # on a GPU bfloat16 and 20 channels, whose memory has gaps
        on_gpu = device.type == "cuda"
        self.dtype, self.width = (torch.bfloat16, 20) if on_gpu else (torch.float32, 4)
        whole = architecture("resnet", num_classes=CLASSES, image_channels=1, width=self.width)
        chain = Chain.build(whole[2:7], dropout=0.2, seed=3, dtype=self.dtype, loss=loss)
        chain = chain.to(device)
        self.chain = chain.to(memory_format=torch.channels_last)
        self.optimizers = {
            layer.spec.index: optimizer_class(optimizer)(
                layer.parameters(),
                Recipe(lr=0.01, **recipe),
                layer_factor(recipe.get("lr_scale", 1.0), layer.spec.index, len(whole)),
            )
            for layer in self.chain.parts()
        }

    def set_lr(self, lr: float) -> None:
        for optimizer in self.optimizers.values():
            optimizer.set_lr(lr)

    def batch(self, number: int) -> tuple[Activations, Tensor]:
        generator = torch.Generator().manual_seed(number)
        shape = (IMAGES, self.width, 32, 32)
        features, shortcut = (
            torch.randn(shape, generator=generator)
            .to(self.device, self.dtype)
            .to(memory_format=torch.channels_last)
            for _ in range(2)
        )
        labels = torch.randint(CLASSES, (IMAGES,), generator=generator).to(self.device)
        return Activations(features=features, shortcut=shortcut), labels

    def learn(self, number: int) -> tuple[Activations, list[Tensor]]:
        """Learn from a batch by an eager step."""
        share = Share(step=number, batch_size=IMAGES)
        states = self.chain.dropout_states(share, self.device)
        on_device = {index: state.to(self.device) for index, state in states.items()}
        step = ChainStep(self.chain, analytic_step, ImmediateUpdates(self.optimizers))
        return step(*self.batch(number), IMAGES, on_device)

    def record(self, record: Record, number: int = 99) -> RecordedStep:
        updates = SideStreamUpdates(self.optimizers, self.device)
        step = ChainStep(self.chain, analytic_step, updates)
        return RecordedStep(step, self.optimizers, *self.batch(number), record)

    def state(self) -> dict[str, Tensor]:
        return {
            f"{layer.spec.index} {name}": value.clone()
            for layer in self.chain.parts()
            for name, value in layer_state(layer, self.optimizers[layer.spec.index]).items()
        }


def rerun_with_warm_ups(work: Callable[[], None]) -> Callable[[], None]:
    """Run the work a few times before, as a CUDA graph's recording does."""
    for _ in range(4):
        work()
    return work


CASES = [
    pytest.param(torch.device("cpu"), rerun, id="rerun"),
    pytest.param(torch.device("cpu"), rerun_with_warm_ups, id="with warm-ups"),
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


@pytest.mark.parametrize(
    ("optimizer", "loss", "recipe"),
    [
        *(("adamw", "goodness", {}), ("adam", "goodness", {}), ("muon", "goodness", {})),
        *(("adamw", "linear_similarity", {}), ("adamw", "goodness", {"clip_norm": 1e-3})),
        ("muon", "linear_similarity", {"clip_norm": 1e-3, "lr_scale": 0.5}),
    ],
    ids=str,
)
@pytest.mark.parametrize(("device", "record"), CASES)
@pytest.mark.parametrize("steps_before", [0, 2])
def test_replays_give_the_bits_of_eager_steps(
    device: torch.device,
    record: Record,
    optimizer: str,
    loss: str,
    recipe: dict[str, Any],
    steps_before: int,
):
    config = LossConfig(name=loss)
    eager, replayed = (Trained(device, optimizer, config, **recipe) for _ in range(2))
    for number in range(steps_before):
        eager.learn(number)
        replayed.learn(number)
    step, kept = replayed.record(record), []
    for number in range(2, 6):
        eager.set_lr(0.01 / number)
        replayed.set_lr(0.01 / number)
        expected, losses = eager.learn(number)
        share = Share(step=number, batch_size=IMAGES)
        found, found_losses = step(*replayed.batch(number), share)
        kept.append((torch.stack(found_losses), torch.stack(losses).clone()))
        kept.append((found.features, expected.features.clone()))
    # results of a replay stay, though the next one writes to the same memory
    assert all(torch.equal(*pair) for pair in kept)
    expected_state, found_state = eager.state(), replayed.state()
    assert found_state.keys() == expected_state.keys()
    assert all(torch.equal(found_state[name], expected_state[name]) for name in expected_state)


def test_the_batch_of_the_recording_is_not_learned_from():
    trained = Trained(torch.device("cpu"), "adamw")
    before = trained.state()
    trained.record(rerun_with_warm_ups, number=0)
    after = trained.state()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(not after[name].any() for name in after.keys() - before.keys())


@pytest.mark.parametrize(("device", "record"), CASES)
def test_recorded_evaluations_give_the_bits_of_eager_ones(device: torch.device, record: Record):
    trained, kept = Trained(device, "adamw"), []
    recorded = RecordedEvaluation(trained.chain, analytic_forward, trained.batch(99)[0], record)
    for number in range(3):
        trained.learn(number)  # a replay reads the weights as they are then
        activations, _ = trained.batch(10 + number)
        expected, logits = trained.chain.evaluate(activations, analytic_forward)
        found, found_logits = recorded(activations)
        kept.append((found.features, expected.features.clone()))
        kept.append((torch.stack(found_logits), torch.stack(logits)))
        assert (found.shortcut is None) == (expected.shortcut is None)
    assert all(torch.equal(*pair) for pair in kept)
