"""Optimizers against the textbooks and torch.optim."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rayff.config.errors import UserError
from rayff.config.recipe import Recipe
from rayff.learning.layer import CWConv
from rayff.learning.layer_state import layer_state
from rayff.learning.optimizers import (
    OPTIMIZERS,
    optimizer_class,
    step_together,
    try_optimizer,
)
from rayff.models.architecture import LayerSpec

SPEC = LayerSpec(index=7, in_channels=2, out_channels=4, kernel_size=3, in_size=6)
GRADIENTS = np.random.default_rng(0).normal(size=(5, 4, 2, 3, 3))
RATES = (0.05, 0.05, 0.02, 0.02, 0.01)


def steps(name: str, decay: float = 0.1) -> tuple[np.ndarray, list[np.ndarray]]:
    """Step along GRADIENTS with RATES; return the first weight and those after each step."""
    layer = CWConv(SPEC, 2)
    optimizer = optimizer_class(name)(layer.parameters(), Recipe(weight_decay=decay))
    start, path = layer.weight.detach().double().numpy(), []
    for gradient, lr in zip(GRADIENTS, RATES, strict=True):
        optimizer.set_lr(lr)
        layer.weight.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
        path.append(layer.weight.detach().double().numpy())
    return start, path


def assert_near(path: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for one, other in zip(path, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


class CountsInPython(torch.optim.Optimizer):
    """Keeps its number of steps where no tensor is."""

    def __init__(self, parameters: Any, lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr})

    def step(self) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["step"] = self.state[parameter].get("step", 0) + 1


class WithoutDecay(torch.optim.SGD):
    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr)


class WithClosure(torch.optim.SGD):
    def step(self, closure: Any) -> None:  # type: ignore[override]
        closure()


class CountsBeside(torch.optim.SGD):
    """Counts its steps where no checkpoint looks."""

    def step(self) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        group["steps"] = group.get("steps", 0) + 1
        group["lr"] /= group["steps"]
        super().step()


@pytest.mark.parametrize("decay", [0.0, 0.1])
class TestTextbook:
    @pytest.mark.parametrize("optimizer", ["adamw", "adam"])
    def test_adam_and_adamw(self, optimizer: str, decay: float):
        w, path = steps(optimizer, decay)
        m, v, expected = np.zeros_like(w), np.zeros_like(w), []
        for t, (gradient, lr) in enumerate(zip(GRADIENTS, RATES, strict=True), start=1):
            if optimizer == "adamw":
                w = w - lr * decay * w  # decoupled from the moments
            else:
                gradient = gradient + decay * w  # L2: through the moments
            m = 0.9 * m + 0.1 * gradient
            v = 0.999 * v + 0.001 * gradient**2
            w = w - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            expected.append(w)
        assert_near(path, expected)

    def test_sgd_with_momentum(self, decay: float):
        w, path = steps("sgd", decay)
        momentum, expected = np.zeros_like(w), []
        for gradient, lr in zip(GRADIENTS, RATES, strict=True):
            momentum = 0.9 * momentum + gradient + decay * w
            w = w - lr * momentum
            expected.append(w)
        assert_near(path, expected)


class TestImportPaths:
    @pytest.mark.parametrize("decay", [0.0, 0.1])
    def test_rmsprop_of_torch(self, decay: float):
        w, path = steps("torch.optim:RMSprop", decay)
        square, expected = np.zeros_like(w), []
        for gradient, lr in zip(GRADIENTS, RATES, strict=True):
            gradient = gradient + decay * w
            square = 0.99 * square + 0.01 * gradient**2
            w = w - lr * gradient / (np.sqrt(square) + 1e-8)
            expected.append(w)
        assert_near(path, expected)

    def test_adagrad_of_torch_whose_constructor_makes_its_state(self):
        w, path = steps("torch.optim:Adagrad", 0.0)
        total, expected = np.zeros_like(w), []
        for gradient, lr in zip(GRADIENTS, RATES, strict=True):
            total = total + gradient**2
            w = w - lr * gradient / (np.sqrt(total) + 1e-10)
            expected.append(w)
        assert_near(path, expected)

    @pytest.mark.parametrize("name", ["Adagrad", "NAdam", "SGD", "ASGD"])
    def test_a_try_accepts_what_works_and_draws_no_random_number(self, name: str):
        before = torch.get_rng_state()
        try_optimizer(Recipe(optimizer=f"torch.optim:{name}"), [(4, 2, 3, 3), (4,), ()])
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            (
                "WithoutDecay",
                r"WithoutDecay\(parameters, lr=..., weight_decay=...\) for .* \(4,\) ",
            ),
            ("WithClosure", r"WithClosure fails in step\(\) \(TypeError: .*'closure'\): it is"),
            ("CountsBeside", "CountsBeside goes another way when it continues from its saved st"),
            ("CountsInPython", "CountsInPython keeps 'step' as int, which a checkpoint cannot"),
        ],
    )
    def test_a_try_refuses_what_would_fail_or_resume_otherwise(self, name: str, sentence: str):
        with pytest.raises(UserError, match=f"^--optimizer.*{sentence}"):
            try_optimizer(Recipe(optimizer=f"{__name__}:{name}"), [(4,)])

    def test_adamw_of_torch_is_the_built_in_one(self):
        for one, other in zip(steps("adamw")[1], steps("torch.optim:AdamW")[1], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)

    def test_state_that_no_checkpoint_holds_is_refused(self):
        layer = CWConv(SPEC, 2)
        optimizer = optimizer_class(f"{__name__}:CountsInPython")(layer.parameters(), Recipe())
        layer.weight.grad = torch.ones_like(layer.weight)
        with pytest.raises(UserError, match="CountsInPython keeps 'step' as int, which a check"):
            optimizer.step()

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("adamx", r"--optimizer: unknown optimizer 'adamx' \(did you mean 'adam"),
            ("SGD", "--optimizer: unknown optimizer 'SGD'"),
            ("torch.optim:RMSpro", r"torch.optim has no 'RMSpro' \(did you mean 'RMSprop'"),
            ("torch.nn:Linear", "--optimizer torch.nn:Linear is not a subclass of torch.optim"),
            ("math:sqrt", "--optimizer math:sqrt is not a subclass of torch.optim.Optimizer"),
        ],
    )
    def test_another_name_is_refused(self, name: str, sentence: str):
        with pytest.raises(UserError, match=sentence):
            optimizer_class(name)


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_steps_together_have_the_bits_of_single_steps(name: str):
    def learned(together: bool) -> list[dict[str, Tensor]]:
        layers = [CWConv(SPEC, 2, seed=seed) for seed in range(3)]
        optimizers = [optimizer_class(name)(layer.parameters(), Recipe()) for layer in layers]
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            for layer in layers:
                layer.weight.grad = torch.randn(layer.weight.shape, generator=generator)
            if together:
                step_together(optimizers)
            else:
                for optimizer in optimizers:
                    optimizer.step()
        return [layer_state(*pair) for pair in zip(layers, optimizers, strict=True)]

    for one, other in zip(learned(False), learned(True), strict=True):
        assert one.keys() == other.keys()
        assert len(one) > 1
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", OPTIMIZERS.names)
def test_layers_of_other_learning_rates_step_together_as_well(name: str):
    def learned(together: bool) -> list[Tensor]:
        layers = [CWConv(SPEC, 2, seed=seed) for seed in range(4)]
        optimizers = [
            optimizer_class(name)(layer.parameters(), Recipe(clip_norm=0.5), factor)
            for layer, factor in zip(layers, (1.0, 0.5, 1.0, 0.25), strict=True)
        ]
        generator = torch.Generator().manual_seed(0)
        for lr in (0.0, 0.1, 0.2):  # with 0 their learning rates are the same once
            for layer, optimizer in zip(layers, optimizers, strict=True):
                optimizer.set_lr(lr)
                layer.weight.grad = torch.randn(layer.weight.shape, generator=generator)
            if together:
                step_together(optimizers)
            else:
                for optimizer in optimizers:
                    optimizer.step()
        return [layer.weight.detach() for layer in layers]

    for one, other in zip(learned(False), learned(True), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", [*OPTIMIZERS.names, "torch.optim:RMSprop"])
def test_the_factor_of_a_layer_multiplies_every_learning_rate(name: str):
    def learned(factor: float, rates: tuple[float, ...]) -> Tensor:
        layer = CWConv(SPEC, 2)
        recipe = Recipe(lr=rates[0], weight_decay=0.1)
        optimizer = optimizer_class(name)(layer.parameters(), recipe, factor)
        for number, gradient in enumerate(GRADIENTS[: len(rates)]):
            if number:  # the first one is the recipe's
                optimizer.set_lr(rates[number])
            layer.weight.grad = torch.tensor(gradient, dtype=torch.float32)
            optimizer.step()
        return layer.weight.detach()

    # powers of two, which multiply without rounding
    assert torch.equal(learned(0.25, (0.5, 0.25)), learned(1.0, (0.125, 0.0625)))
    assert not torch.equal(learned(0.25, (0.5, 0.25)), learned(1.0, (0.125, 0.25)))


class TestClipping:
    """Against torch.nn.utils.clip_grad_norm_ in float64, and the definition."""

    @given(
        scale=st.floats(1e-3, 1e3),
        clip_norm=st.floats(1e-2, 1e2),
        shapes=st.lists(st.sampled_from([(), (3,), (2, 5), (4, 2, 3, 3)]), min_size=1, max_size=4),
    )
    def test_the_gradient_of_all_parameters_is_scaled_down_to_the_norm(
        self, scale: float, clip_norm: float, shapes: list[tuple[int, ...]]
    ):
        generator = torch.Generator().manual_seed(0)
        gradients = [
            scale * torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in shapes
        ]
        parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        recipe = Recipe(lr=1.0, weight_decay=0.0, clip_norm=clip_norm)
        optimizer = optimizer_class("torch.optim:SGD")(parameters, recipe)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()  # a step of SGD with a learning rate of 1 is the gradient itself

        expected = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        for parameter, gradient in zip(expected, gradients, strict=True):
            parameter.grad = gradient.clone()
        nn.utils.clip_grad_norm_(expected, clip_norm)
        norm = np.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        factor = min(1.0, clip_norm / (norm + 1e-6))
        for parameter, other, gradient in zip(parameters, expected, gradients, strict=True):
            assert other.grad is not None
            assert torch.allclose(-parameter.detach(), other.grad, rtol=1e-12, atol=0)
            assert torch.allclose(-parameter.detach(), factor * gradient, rtol=1e-9, atol=0)

    def test_a_gradient_that_is_no_number_stays_none(self):
        layer = CWConv(SPEC, 2)
        optimizer = optimizer_class("adamw")(layer.parameters(), Recipe(clip_norm=1.0))
        layer.weight.grad = torch.full_like(layer.weight, torch.inf)
        optimizer.step()
        assert layer.weight.isnan().all()
