"""Immediate, all-reduced and side-stream updates: strategies of one step with the same bits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rayff.config.local_loss import LossConfig
from rayff.config.recipe import Recipe
from rayff.learning import updates as module
from rayff.learning.analytic import analytic_step
from rayff.learning.autograd import LayerStep, autograd_step
from rayff.learning.chain import Activations, Chain, normalise
from rayff.learning.generators import Share
from rayff.learning.layer_state import layer_state
from rayff.learning.lr_schedule import layer_factor
from rayff.learning.optimizers import optimizer_class
from rayff.learning.step import ChainStep
from rayff.learning.updates import (
    AllReducedUpdates,
    ImmediateUpdates,
    Optimizers,
    SideStreamUpdates,
    Updates,
)
from rayff.models.zoo import architecture
from tests.helpers.layers import CPU
from tests.helpers.losses import LINEAR

NETWORK = architecture("resnet", num_classes=2, image_channels=1, width=2)[:7]
BATCHES = 4


class Replicas:
    """An all-reduce among replicas of which the others have no images: the sum is one's own.

    The sum is complete once it is waited for, so a step that does not wait sees no gradient.
    """

    def __init__(self) -> None:
        self.started: list[nn.Parameter] = []

    def __call__(self, parameter: nn.Parameter) -> Callable[[], None]:
        self.started.append(parameter)
        gradient, parameter.grad = parameter.grad, None

        def wait() -> None:
            parameter.grad = gradient

        return wait


CLIPPED = {"lr_scale": 0.5, "clip_norm": 1e-3}
"""Learning rates that differ and a norm below that of the gradients."""

Make = Callable[[Optimizers], Updates]
WAYS: dict[str, Make] = {
    "immediate": ImmediateUpdates,
    "all-reduced": lambda optimizers: AllReducedUpdates(optimizers, Replicas()),
    "side stream": lambda optimizers: SideStreamUpdates(optimizers, CPU),
}


def train(
    make: Make, layer_step: LayerStep, loss: str, optimizer: str, **recipe: Any
) -> dict[str, Tensor]:
    """Return the losses, the features and the state of all layers after a few batches."""
    lr_scale = recipe.get("lr_scale", 1.0)
    chain = Chain.build(NETWORK, dropout=0.2, seed=3, loss=LossConfig(name=loss))
    chain = chain.to(memory_format=torch.channels_last)
    optimizers = {
        layer.spec.index: optimizer_class(optimizer)(
            layer.parameters(),
            Recipe(lr=0.05, **recipe),
            layer_factor(lr_scale, layer.spec.index, len(NETWORK)),
        )
        for layer in chain.parts()
    }
    step = ChainStep(chain, layer_step, make(optimizers))
    generator, found = torch.Generator().manual_seed(0), {}
    for number in range(BATCHES):
        images = torch.randint(256, (4, 1, 32, 32), dtype=torch.uint8, generator=generator)
        states = chain.dropout_states(Share(step=number, batch_size=4), CPU)
        entering = Activations(features=normalise(images))
        left, losses = step(entering, torch.tensor([0, 1, 1, 1]), 4, states)
        assert all(parameter.grad is None for parameter in chain.parameters())
        found[f"losses {number}"], found[f"features {number}"] = torch.stack(losses), left.features
    for layer in chain.parts():
        index = layer.spec.index
        for name, value in layer_state(layer, optimizers[index]).items():
            found[f"layer {index} {name}"] = value
    return found


@pytest.mark.parametrize(
    ("layer_step", "loss"),
    [
        *((analytic_step, "goodness"), (analytic_step, "linear_similarity")),
        *((autograd_step, "goodness"), (autograd_step, LINEAR)),
    ],
)
@pytest.mark.parametrize(
    ("optimizer", "recipe"),
    [("adamw", {}), ("sgd", {}), ("muon", {}), ("adamw", CLIPPED), ("muon", CLIPPED)],
    ids=str,
)
@pytest.mark.parametrize("way", ["all-reduced", "side stream"])
def test_all_ways_give_the_same_bits(
    way: str, layer_step: LayerStep, loss: str, optimizer: str, recipe: dict[str, Any]
):
    expected = train(WAYS["immediate"], layer_step, loss, optimizer, **recipe)
    found = train(WAYS[way], layer_step, loss, optimizer, **recipe)
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert different == []


@pytest.mark.parametrize("weights", [1, 200, 10**9])
def test_grouping_on_the_side_stream_changes_no_bit(weights: int, monkeypatch: pytest.MonkeyPatch):
    expected = train(WAYS["immediate"], autograd_step, LINEAR, "adamw")
    monkeypatch.setattr(module, "_GROUPED_WEIGHTS", weights)
    found = train(WAYS["side stream"], autograd_step, LINEAR, "adamw")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("loss", ["goodness", LINEAR])
def test_every_parameter_of_every_layer_is_summed_once_a_batch_in_one_order(loss: str):
    replicas = Replicas()
    train(lambda optimizers: AllReducedUpdates(optimizers, replicas), autograd_step, loss, "sgd")
    each = len(NETWORK) * (1 if loss == "goodness" else 3)
    assert len(replicas.started) == BATCHES * each
    assert len({id(parameter) for parameter in replicas.started[:each]}) == each
    for batch in range(1, BATCHES):
        pairs = zip(replicas.started, replicas.started[batch * each :], strict=False)
        assert all(one is other for one, other in list(pairs)[:each])


@pytest.mark.parametrize("loss", ["goodness", LINEAR])
def test_a_share_without_images_adds_zero_gradients(loss: str):
    chain = Chain.build(NETWORK, loss=LossConfig(name=loss))
    gradients: list[Tensor] = []

    def all_reduce(parameter: nn.Parameter) -> Callable[[], None]:
        assert parameter.grad is not None
        gradients.append(parameter.grad)
        return lambda: None

    optimizers = {
        layer.spec.index: optimizer_class("sgd")(layer.parameters(), Recipe())
        for layer in chain.parts()
    }
    step = ChainStep(chain, autograd_step, AllReducedUpdates(optimizers, all_reduce))
    nothing = Activations(features=torch.zeros(0, 1, 32, 32))
    left, losses = step(nothing, torch.zeros(0, dtype=torch.int64), 4, {})
    assert left is nothing
    assert [loss.item() for loss in losses] == [0.0] * len(NETWORK)
    assert [each.shape for each in gradients] == [p.shape for p in chain.parameters()]
    assert not any(each.any() for each in gradients)


@pytest.mark.parametrize("loss", ["goodness", LINEAR])
@pytest.mark.parametrize("way", WAYS)
def test_a_clipped_step_of_plain_sgd_is_as_long_as_the_learning_rate_allows(way: str, loss: str):
    """Of a layer's parameters together, those of its loss included."""
    chain = Chain.build(NETWORK, seed=3, loss=LossConfig(name=loss)).to(
        memory_format=torch.channels_last
    )
    optimizers = {
        layer.spec.index: optimizer_class("sgd")(
            layer.parameters(), Recipe(lr=0.5, weight_decay=0.0, clip_norm=1e-4)
        )
        for layer in chain.parts()
    }
    before = {name: value.clone() for name, value in chain.state_dict().items()}
    step = ChainStep(chain, autograd_step, WAYS[way](optimizers))
    images = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    step(Activations(features=images), torch.tensor([0, 1, 1, 1]), 4, {})
    for place in range(len(NETWORK)):
        moved = [
            (value - before[name]).double().square().sum()
            for name, value in chain.state_dict().items()
            if name.startswith(f"layers.{place}.")
        ]
        assert len(moved) == (1 if loss == "goodness" else 3)
        assert torch.stack(moved).sum().sqrt().item() == pytest.approx(0.5e-4, rel=0.02)
