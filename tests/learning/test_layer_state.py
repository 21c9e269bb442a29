"""A layer's state in a safetensors file: bit for bit, and damaged."""

import math
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from rayff.config.errors import UserError
from rayff.config.local_loss import LossConfig
from rayff.config.recipe import Recipe
from rayff.learning.autograd import autograd_step
from rayff.learning.generators import Share
from rayff.learning.layer import CWConv
from rayff.learning.layer_state import Layout, check_state, layer_state, restore_layer
from rayff.learning.optimizers import OPTIMIZERS, LayerOptimizer, optimizer_class
from rayff.models.architecture import LayerSpec
from tests.helpers.layers import CPU
from tests.helpers.losses import LINEAR

SPEC = LayerSpec(index=7, in_channels=2, out_channels=4, kernel_size=3, in_size=6)
State = dict[str, Tensor]


def make(
    optimizer: str = "adamw", loss: str = "goodness", seed: int = 0, lr: float = 0.05
) -> tuple[CWConv, LayerOptimizer]:
    layer = CWConv(SPEC, 2, dropout=0.2, seed=seed, loss=LossConfig(name=loss))
    recipe = Recipe(optimizer=optimizer, lr=lr, weight_decay=0.1)
    return layer, optimizer_class(optimizer)(layer.parameters(), recipe)


def learn(layer: CWConv, optimizer: LayerOptimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(step))
        state = layer.dropout_state(Share(step=step, batch_size=3), CPU)
        autograd_step(layer, x, torch.tensor([0, 1, 1]), 3, state)[1]()
        optimizer.step()


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("loss", ["goodness", LINEAR])
@pytest.mark.parametrize("optimizer", [*OPTIMIZERS.names, "torch.optim:RMSprop"])
class TestRestore:
    @pytest.mark.parametrize("steps", [0, 1, 4])
    def test_a_restored_layer_goes_on_with_the_same_bits(
        self, optimizer: str, loss: str, steps: int
    ):
        whole, whole_optimizer = make(optimizer, loss)
        learn(whole, whole_optimizer, range(steps))
        file = save(layer_state(whole, whole_optimizer))
        learn(whole, whole_optimizer, range(steps, steps + 3))

        restored, its_optimizer = make(optimizer, loss)
        learn(restored, its_optimizer, range(9, 11))  # what it learned before is forgotten
        restore_layer(7, restored, its_optimizer, load(file))
        assert same(load(save(layer_state(restored, its_optimizer))), load(file))
        learn(restored, its_optimizer, range(steps, steps + 3))
        assert same(layer_state(restored, its_optimizer), layer_state(whole, whole_optimizer))

    def test_the_given_state_is_copied(self, optimizer: str, loss: str):
        layer, its_optimizer = make(optimizer, loss)
        learn(layer, its_optimizer, range(2))
        given = load(save(layer_state(layer, its_optimizer)))
        before = {name: value.clone() for name, value in given.items()}
        other, others_optimizer = make(optimizer, loss, seed=1)
        restore_layer(7, other, others_optimizer, given)
        learn(other, others_optimizer, range(2))
        assert same(given, before)


def test_the_learning_rate_is_no_state():
    layer, optimizer = make()
    learn(layer, optimizer, range(1))
    other, its_optimizer = make(lr=0.7)
    restore_layer(7, other, its_optimizer, load(save(layer_state(layer, optimizer))))
    assert its_optimizer.lr == 0.7


def test_the_state_has_plain_names_and_shares_the_layers_memory():
    layer, optimizer = make()
    learn(layer, optimizer, range(1))
    state = layer_state(layer, optimizer)
    assert sorted(state) == [
        "optimizer.exp_avg",
        "optimizer.exp_avg_sq",
        "optimizer.step",
        "weight",
    ]
    assert state["weight"].data_ptr() == layer.weight.data_ptr()
    assert not state["weight"].requires_grad


class TestMistakes:
    @pytest.mark.parametrize(
        ("optimizer", "loss", "damage", "sentence"),
        [
            ("adamw", "goodness", lambda s: s.clear(), "no weight for layer 7"),
            (
                "adamw",
                "goodness",
                lambda s: s.update(weight=torch.ones(6, 2, 3, 3)),
                r"a weight of shape \(6, 2, 3, 3\) for layer 7, .* \(4, 2, 3, 3\): it belongs",
            ),
            ("adamw", "goodness", lambda s: s.update(weight=torch.ones(72)), r"shape \(72,\)"),
            (
                "adamw",
                "goodness",
                lambda s: s.pop("optimizer.exp_avg"),
                "but its optimizer has optimizer.exp_avg, ",
            ),
            ("adamw", "goodness", lambda s: s.update({"optimizer.x": torch.ones(())}), "er.x'"),
            ("adamw", "goodness", lambda s: s.update(bias=torch.ones(4)), "has 'bias', "),
            (
                "adamw",
                "goodness",
                lambda s: s["weight"].fill_(math.nan),
                r"weight of layer 7 is not \(4, 2, 3, 3\) finite",
            ),
            ("adamw", "goodness", lambda s: s.update(weight=s["weight"].double()), "float32"),
            ("adamw", "goodness", lambda s: s.update({"optimizer.step": torch.ones(2)}), "(2,)"),
            ("adam", "goodness", lambda s: s["optimizer.exp_avg"].resize_(8), "exp_avg of layer"),
            ("sgd", "goodness", lambda s: s["optimizer.momentum_buffer"].resize_(8), "_buffer"),
            (
                "adamw",
                LINEAR,
                lambda s: s.pop("loss.head.bias"),
                r"no loss.head.bias for layer 7, but the network's has shape \(2,\)",
            ),
            (
                "adamw",
                LINEAR,
                lambda s: s.pop("optimizer.loss.head.bias.step"),
                "its optimizer has .*optimizer.loss.head.bias.step",
            ),
            (
                "torch.optim:RMSprop",
                "goodness",
                lambda s: s.update({"weight": torch.ones(72)}),
                r"shape \(72,\)",
            ),
        ],
    )
    def test_a_damaged_state_is_refused_and_nothing_changes(
        self, optimizer: str, loss: str, damage: Callable[[State], object], sentence: str
    ):
        layer, its_optimizer = make(optimizer, loss)
        learn(layer, its_optimizer, range(1))
        state = load(save(layer_state(layer, its_optimizer)))
        restore_layer(7, layer, its_optimizer, state)
        before = load(save(layer_state(layer, its_optimizer)))
        damage(state)
        with pytest.raises(UserError, match=sentence) as caught:
            restore_layer(7, layer, its_optimizer, state)
        assert "layer 7" in str(caught.value)
        assert same(layer_state(layer, its_optimizer), before)

    def test_a_state_before_the_first_step_has_parameters_alone(self):
        layout = Layout(learned={"weight": (4, 2, 3, 3)})
        check_state(7, layout, optimizer_class("adamw"), {"weight": torch.ones(4, 2, 3, 3)})
