import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from rayff.config.errors import UserError
from rayff.config.recipe import Recipe
from rayff.learning.autograd import local_step, plain_rule
from rayff.learning.layer import CWConv
from rayff.learning.optimizers import (
    LayerOptimizer,
    cosine_lr,
    layer_state,
    restore_layer,
    step_together,
)
from rayff.models.architecture import LayerSpec

OPTIMIZERS = ["adamw", "adam", "sgd"]


def small_layer(seed: int = 0) -> CWConv:
    spec = LayerSpec(index=7, in_channels=2, out_channels=4, kernel_size=3, in_size=6)
    return CWConv(spec, 2, dropout=0.2, seed=seed)


def recipe_of(optimizer: Any, **changes: Any) -> Recipe:
    return Recipe(**{"optimizer": optimizer, "lr": 0.05, "weight_decay": 0.1, **changes})


class TestTextbook:
    """Five steps along given gradients, and the same in float64 as the textbooks write them."""

    GRADIENTS = np.random.default_rng(0).normal(size=(5, 4, 2, 3, 3))
    RATES = (0.05, 0.05, 0.02, 0.02, 0.01)

    def steps(self, recipe: Recipe) -> tuple[np.ndarray, list[np.ndarray]]:
        layer = small_layer()
        optimizer = LayerOptimizer(layer, recipe)
        start, path = layer.weight.detach().double().numpy(), []
        for gradient, lr in zip(self.GRADIENTS, self.RATES, strict=True):
            optimizer.set_lr(lr)
            layer.weight.grad = torch.tensor(gradient, dtype=torch.float32)
            optimizer.step()
            path.append(layer.weight.detach().double().numpy())
        return start, path

    @staticmethod
    def check(path: list[np.ndarray], expected: list[np.ndarray]) -> None:
        for one, other in zip(path, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)

    @pytest.mark.parametrize("decay", [0.0, 0.1])
    @pytest.mark.parametrize("optimizer", ["adamw", "adam"])
    def test_adam_and_adamw(self, optimizer: str, decay: float):
        w, path = self.steps(recipe_of(optimizer, weight_decay=decay))
        m, v, expected = np.zeros_like(w), np.zeros_like(w), []
        rounds = zip(self.GRADIENTS, self.RATES, strict=True)
        for t, (gradient, lr) in enumerate(rounds, start=1):
            if optimizer == "adamw":
                w = w - lr * decay * w  # decoupled: beside the moments
            else:
                gradient = gradient + decay * w  # L2: through the moments
            m = 0.9 * m + 0.1 * gradient
            v = 0.999 * v + 0.001 * gradient**2
            w = w - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            expected.append(w)
        self.check(path, expected)

    @pytest.mark.parametrize("decay", [0.0, 0.1])
    def test_sgd_with_momentum(self, decay: float):
        w, path = self.steps(recipe_of("sgd", weight_decay=decay))
        momentum, expected = np.zeros_like(w), []
        for gradient, lr in zip(self.GRADIENTS, self.RATES, strict=True):
            momentum = 0.9 * momentum + gradient + decay * w
            w = w - lr * momentum
            expected.append(w)
        self.check(path, expected)


class TestCosine:
    @pytest.mark.parametrize(
        ("epoch", "lr"),
        # of the way from 0.008 to 0.08: all, three quarters, half, a quarter
        [(0, 0.08), (50, 0.062), (75, 0.044), (100, 0.026)],
    )
    def test_the_papers_rates(self, epoch: int, lr: float):
        assert cosine_lr(Recipe(), epoch) == pytest.approx(lr, rel=1e-12)

    def test_the_last_epoch_of_two_is_half_way(self):
        assert cosine_lr(Recipe(epochs=2, lr=1.0, lr_min=0.0), 1) == pytest.approx(0.5)

    @pytest.mark.parametrize("epochs", [1, 2, 7, 150])
    def test_it_is_the_schedule_of_torch(self, epochs: int):
        optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.08)
        schedule = CosineAnnealingLR(optimizer, T_max=epochs, eta_min=0.008)
        recipe = Recipe(epochs=epochs)
        for epoch in range(epochs):
            assert cosine_lr(recipe, epoch) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
            optimizer.step()
            schedule.step()

    def test_it_never_rises_and_stays_above_its_end(self):
        rates = [cosine_lr(Recipe(epochs=20), epoch) for epoch in range(20)]
        assert rates == sorted(rates, reverse=True)
        assert 0.008 < rates[-1] < 0.009
        assert rates[0] == pytest.approx(0.08, rel=1e-12)

    def test_equal_ends_are_a_constant(self):
        recipe = Recipe(epochs=5, lr=0.03, lr_min=0.03)
        assert all(math.isclose(cosine_lr(recipe, epoch), 0.03) for epoch in range(5))


def learn(layer: CWConv, optimizer: LayerOptimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(3, 2, 6, 6, generator=generator)
        local_step(plain_rule, layer, optimizer, x, torch.tensor([0, 1, 1]), step)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
class TestState:
    @pytest.mark.parametrize("done", [0, 1, 4])
    def test_a_restored_layer_goes_on_with_the_same_bits(self, optimizer: str, done: int):
        recipe = recipe_of(optimizer)
        layer = small_layer()
        own = LayerOptimizer(layer, recipe)
        learn(layer, own, range(done))
        stored = save(layer_state(layer, own))

        other = small_layer()
        torch.nn.init.constant_(other.weight, 5.0)
        its = LayerOptimizer(other, recipe)
        restore_layer(other, its, load(stored))
        assert same(layer_state(other, its), load(stored))

        learn(layer, own, range(done, done + 3))
        learn(other, its, range(done, done + 3))
        assert same(layer_state(layer, own), layer_state(other, its))
        assert not torch.equal(layer.weight, load(stored)["weight"])

    def test_a_layer_that_had_learned_forgets_what_it_had_before(self, optimizer: str):
        recipe = recipe_of(optimizer)
        fresh, used = small_layer(), small_layer()
        one, other = LayerOptimizer(fresh, recipe), LayerOptimizer(used, recipe)
        start = load(save(layer_state(fresh, one)))
        learn(used, other, range(3))
        restore_layer(used, other, start)
        learn(fresh, one, range(2))
        learn(used, other, range(2))
        assert same(layer_state(fresh, one), layer_state(used, other))

    def test_the_optimizer_does_not_hold_on_to_the_tensors_it_was_given(self, optimizer: str):
        layer = small_layer()
        own = LayerOptimizer(layer, recipe_of(optimizer))
        learn(layer, own, range(2))
        given = load(save(layer_state(layer, own)))
        before = {name: value.clone() for name, value in given.items()}
        other = small_layer(seed=1)
        its = LayerOptimizer(other, recipe_of(optimizer))
        restore_layer(other, its, given)
        learn(other, its, range(2))
        assert same(given, before)

    def test_the_rate_stays_the_optimizers_own(self, optimizer: str):
        layer = small_layer()
        own = LayerOptimizer(layer, recipe_of(optimizer))
        learn(layer, own, range(1))
        other = small_layer()
        its = LayerOptimizer(other, recipe_of(optimizer, lr=0.7))
        restore_layer(other, its, load(save(layer_state(layer, own))))
        assert its.lr == 0.7


def test_the_state_has_plain_names_and_shares_the_layers_memory():
    layer = small_layer()
    optimizer = LayerOptimizer(layer, recipe_of("adamw"))
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
    @pytest.mark.parametrize("shape", [(6, 2, 3, 3), (2, 4, 3, 3), (4, 2, 1, 1), (72,)])
    def test_the_weight_of_another_layer_is_refused_and_nothing_changes(
        self, shape: tuple[int, ...]
    ):
        layer = small_layer()
        before = layer.weight.detach().clone()
        optimizer = LayerOptimizer(layer, recipe_of("adamw"))
        other = re.escape(str(shape))
        with pytest.raises(UserError, match=rf"{other} for layer 7, .* \(4, 2, 3, 3\): it belong"):
            restore_layer(layer, optimizer, {"weight": torch.ones(shape)})
        assert torch.equal(layer.weight, before)

    def test_a_state_without_a_weight_is_refused(self):
        layer = small_layer()
        with pytest.raises(UserError, match="no weight for layer 7"):
            restore_layer(layer, LayerOptimizer(layer, recipe_of("adamw")), {})

    @pytest.mark.parametrize(
        ("name", "change", "match"),
        [
            ("adamw", lambda s: s.pop("optimizer.exp_avg"), "but adamw has optimizer.exp_avg, "),
            ("adamw", lambda s: s.update({"optimizer.x": torch.ones(())}), "has .*'optimizer.x'"),
            ("adamw", lambda s: s.update({"bias": torch.ones(4)}), "has 'bias', "),
            (
                "adamw",
                lambda s: s["weight"].fill_(math.nan),
                "weight of layer 7 holds numbers that",
            ),
            ("adamw", lambda s: s.update(weight=s["weight"].double()), "torch.float64"),
            ("adamw", lambda s: s.update({"optimizer.step": torch.ones(2)}), r"shape \(2,\)"),
            ("adam", lambda s: s["optimizer.exp_avg"].resize_(4, 2, 3, 1), "optimizer.exp_avg of"),
            ("sgd", lambda s: s["optimizer.momentum_buffer"].resize_(8), "momentum_buffer"),
        ],
    )
    def test_a_state_that_no_optimizer_has_is_refused_and_nothing_changes(
        self, name: str, change: Callable[[dict[str, Tensor]], object], match: str
    ):
        layer = small_layer()
        optimizer = LayerOptimizer(layer, recipe_of(name))
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step()
        state = {name: value.clone() for name, value in layer_state(layer, optimizer).items()}
        restore_layer(layer, optimizer, state)
        before = layer.weight.detach().clone()
        change(state)
        with pytest.raises(UserError, match=match) as caught:
            restore_layer(layer, optimizer, state)
        assert "layer 7" in str(caught.value)
        assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_together_have_the_bits_of_steps_one_by_one(optimizer: str):
    recipe = recipe_of(optimizer)
    ways = []
    for together in (False, True):
        layers = [small_layer(seed) for seed in range(3)]
        optimizers = [LayerOptimizer(layer, recipe) for layer in layers]
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for layer in layers:
                layer.weight.grad = torch.randn(layer.weight.shape, generator=generator)
            if together:
                step_together(optimizers)
            else:
                for each in optimizers:
                    each.step()
        ways.append([layer_state(*pair) for pair in zip(layers, optimizers, strict=True)])
    for one, other in zip(*ways, strict=True):
        assert one.keys() == other.keys()
        assert len(one) > 1
        assert all(torch.equal(one[name], other[name]) for name in one)
