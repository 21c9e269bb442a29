"""Promise 1: no gradient crosses a layer, shortcuts or not."""

import pytest
import torch
from torch import Tensor

from rayff.config.recipe import Recipe
from rayff.learning.autograd import local_step, plain_rule
from rayff.learning.chain import Activations, Chain
from rayff.learning.layer import CWConv
from rayff.learning.optimizers import LayerOptimizer
from rayff.models.zoo import Row, chain

CLASSES = 2
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


def train(
    *, steps: int, other_labels_at: int | None = None, from_step: int = 0
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Train a small chain, one layer with other labels, and return weights and features.

    The features are those that entered each layer, step by step.
    """
    network = chain("small", ROWS, CLASSES, image_channels=1)
    layers = Chain.build(network, dropout=0.2, seed=3)
    recipe = Recipe(lr=0.05, optimizer="adamw")
    optimizers = {layer: LayerOptimizer(layer, recipe) for layer in layers.cwconvs()}
    generator = torch.Generator().manual_seed(0)
    entered: list[list[Tensor]] = []
    for step in range(steps):
        images = torch.randn(4, 1, 32, 32, generator=generator)
        labels = torch.tensor([0, 1, 1, 0])
        entered.append([])

        def visit(layer: CWConv, x: Tensor, step: int = step, labels: Tensor = labels) -> Tensor:
            entered[-1].append(x)
            perturbed = layer.spec.index == other_labels_at and step >= from_step
            own = 1 - labels if perturbed else labels
            return local_step(plain_rule, layer, optimizers[layer], x, own, step)[0]

        layers.walk(Activations(features=images), visit)
    return [layer.weight.detach() for layer in layers.cwconvs()], entered


@pytest.mark.parametrize("perturbed", range(len(ROWS)))
class TestPerturbingOneLayersLoss:
    def test_moves_no_other_layers_update(self, perturbed: int):
        plain, _ = train(steps=3)
        moved, _ = train(steps=3, other_labels_at=perturbed, from_step=2)
        for index, (one, other) in enumerate(zip(plain, moved, strict=True)):
            assert torch.equal(one, other) == (index != perturbed), f"layer {index}"

    def test_moves_no_features_of_the_same_batch(self, perturbed: int):
        _, plain = train(steps=1)
        _, moved = train(steps=1, other_labels_at=perturbed)
        assert all(torch.equal(one, other) for one, other in zip(plain[0], moved[0], strict=True))

    def test_reaches_later_layers_through_later_features_alone(self, perturbed: int):
        plain, _ = train(steps=3)
        moved, _ = train(steps=3, other_labels_at=perturbed)
        for index, (one, other) in enumerate(zip(plain, moved, strict=True)):
            assert torch.equal(one, other) == (index < perturbed), f"layer {index}"


def test_features_travel_without_a_graph_even_where_the_layers_keep_one():
    network = chain("small", ROWS, CLASSES, image_channels=1)
    layers = Chain.build(network)

    def visit(layer: CWConv, x: Tensor) -> Tensor:
        return layer.features(layer.activation(x))

    activations = layers[:2].walk(Activations(features=torch.randn(2, 1, 32, 32)), visit)
    assert not activations.features.requires_grad
    assert activations.shortcut is not None
    assert not activations.shortcut.requires_grad


@pytest.mark.parametrize("kind", ["add", "concat"])
def test_the_shortcut_is_detached_where_it_joins(kind):
    rows = [Row(channels=2, opens_block=True), Row(channels=2, join=kind)]
    layers = Chain.build(chain("block", rows, CLASSES, image_channels=2))
    inner = layers[1:]  # the block was opened on the other side of a cut
    shortcut = torch.randn(1, 2, 32, 32, requires_grad=True)
    entering = Activations(features=torch.randn(1, 2, 32, 32), shortcut=shortcut)
    out = inner.walk(entering, lambda layer, x: layer(x)[0])
    assert not out.features.requires_grad
