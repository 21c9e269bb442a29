"""Promise 1: no gradient leaves a layer, with and without shortcuts, whatever the loss."""

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rayff.config.local_loss import LossConfig
from rayff.config.recipe import Recipe
from rayff.learning.analytic import analytic_step
from rayff.learning.autograd import LayerStep, autograd_step
from rayff.learning.chain import Activations, Chain
from rayff.learning.generators import Share
from rayff.learning.layer import CWConv
from rayff.learning.optimizers import optimizer_class
from rayff.learning.step import ChainStep
from rayff.learning.updates import ImmediateUpdates
from rayff.models.architecture import LayerSpec
from rayff.models.zoo import Row, chain
from tests.helpers.layers import CPU

ROWS = [
    Row(channels=4),
    Row(channels=4, opens_block=True),
    Row(channels=4, join="add"),
    Row(channels=4, opens_block=True),
    Row(channels=4, join="concat"),
    Row(channels=8, stride=2, opens_block=True),
    Row(channels=8, join="add"),  # with a pooled shortcut
    Row(channels=8),
]
NETWORK = chain("small", ROWS, num_classes=2, image_channels=1)
LINEAR = "tests.helpers.losses:LinearHead"


def train(
    layer_step: LayerStep,
    loss: str,
    *,
    steps: int,
    other_labels_at: int | None = None,
    from_step: int = 0,
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Train a small chain, one layer with other labels.

    Returns:
        the parameters of each layer, and the features that entered each layer, step by step.
    """
    layers = Chain.build(NETWORK, dropout=0.2, seed=3, loss=LossConfig(name=loss))
    layers = layers.to(memory_format=torch.channels_last)
    recipe = Recipe(lr=0.05)
    optimizers = {
        layer.spec.index: optimizer_class("adamw")(layer.parameters(), recipe)
        for layer in layers.parts()
    }
    generator = torch.Generator().manual_seed(0)
    entered: list[list[Tensor]] = []

    def perturbed_step(
        layer: CWConv, x: Tensor, labels: Tensor, batch_size: int, state: Tensor | None
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        entered[-1].append(x)
        if layer.spec.index == other_labels_at and len(entered) > from_step:
            labels = 1 - labels
        return layer_step(layer, x, labels, batch_size, state)

    step = ChainStep(layers, perturbed_step, ImmediateUpdates(optimizers))
    for number in range(steps):
        images = torch.randn(4, 1, 32, 32, generator=generator)
        states = layers.dropout_states(Share(step=number, batch_size=4), CPU)
        entered.append([])
        step(Activations(features=images), torch.tensor([0, 1, 1, 1]), 4, states)
    return [[p.detach() for p in layer.parameters()] for layer in layers.parts()], entered


def same(one: list[Tensor], other: list[Tensor]) -> list[bool]:
    return [torch.equal(*pair) for pair in zip(one, other, strict=True)]


@pytest.mark.parametrize(
    ("layer_step", "loss"),
    [
        *((autograd_step, "goodness"), (autograd_step, LINEAR)),
        *((analytic_step, "goodness"), (analytic_step, "channel_matrix")),
    ],
)
@pytest.mark.parametrize("perturbed", range(len(ROWS)))
class TestPerturbingOneLayersLoss:
    def test_changes_no_other_layers_update(
        self, perturbed: int, layer_step: LayerStep, loss: str
    ):
        plain, _ = train(layer_step, loss, steps=3)
        moved, _ = train(layer_step, loss, steps=3, other_labels_at=perturbed, from_step=2)
        for index, (one, other) in enumerate(zip(plain, moved, strict=True)):
            assert set(same(one, other)) == {index != perturbed}, f"layer {index}"

    def test_changes_no_features_of_the_same_batch(
        self, perturbed: int, layer_step: LayerStep, loss: str
    ):
        _, plain = train(layer_step, loss, steps=1)
        _, moved = train(layer_step, loss, steps=1, other_labels_at=perturbed)
        assert all(same(plain[0], moved[0]))

    def test_reaches_later_layers_through_later_features_alone(
        self, perturbed: int, layer_step: LayerStep, loss: str
    ):
        plain, _ = train(layer_step, loss, steps=3)
        moved, _ = train(layer_step, loss, steps=3, other_labels_at=perturbed)
        for index, (one, other) in enumerate(zip(plain, moved, strict=True)):
            assert set(same(one, other)) == {index < perturbed}, f"layer {index}"


def test_activations_have_no_graph_even_where_the_layers_keep_one():
    def visit(layer: CWConv, x: Tensor) -> Tensor:
        return layer.features(layer.activation(x))

    layers = Chain.build(NETWORK)[:2]
    activations = layers.walk(Activations(features=torch.randn(2, 1, 32, 32)), visit)
    assert not activations.features.requires_grad
    assert activations.shortcut is not None
    assert not activations.shortcut.requires_grad


@pytest.mark.parametrize("kind", ["add", "concat"])
def test_the_shortcut_is_detached_where_it_joins(kind):
    rows = [Row(channels=2, opens_block=True), Row(channels=2, join=kind)]
    layers = Chain.build(chain("block", rows, num_classes=2, image_channels=2))
    inner = layers[1:]  # the block was opened in another stage
    shortcut = torch.randn(1, 2, 32, 32, requires_grad=True)
    entering = Activations(features=torch.randn(1, 2, 32, 32), shortcut=shortcut)
    out = inner.walk(entering, lambda layer, x: layer(x)[0])
    assert not out.features.requires_grad


def test_a_layers_input_is_freed_before_its_output_meets_the_shortcut(
    monkeypatch: pytest.MonkeyPatch,
):
    rows = [Row(channels=2, opens_block=True), Row(channels=2), Row(channels=2, join="concat")]
    layers = Chain.build(chain("block", rows, num_classes=2, image_channels=2))
    inputs: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def visit(layer: CWConv, x: Tensor) -> Tensor:
        inputs.append(weakref.ref(x))
        return x.clone()

    def watched(features: Tensor, shortcut: Tensor, spec: LayerSpec) -> Tensor:
        alive.extend(each() is not None for each in inputs)
        return features

    monkeypatch.setattr("rayff.learning.chain.join", watched)
    images = torch.zeros(1, 2, 32, 32)
    layers.walk(Activations(features=images), visit)
    assert alive == [True, False, False]  # the first one is the shortcut
