"""Muon against torch.optim.Muon and AdamW in float64, and its update's singular values."""

import math

import pytest
import torch
from torch import Tensor, nn

from rayff.config.recipe import Recipe
from rayff.learning.muon import Muon

SHAPES = [(6, 4, 3, 3), (4, 9, 1, 1), (40, 2, 1, 2), (5, 7), (3, 1), (1, 4)]
RATES = (0.05, 0.02, 0.01)


def gradients(shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in RATES]


def weight(shape: tuple[int, ...]) -> nn.Parameter:
    generator = torch.Generator().manual_seed(0)
    return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        *((shape, torch.contiguous_format) for shape in SHAPES),
        *((shape, torch.channels_last) for shape in SHAPES if len(shape) == 4),
    ],
    ids=str,
)
def test_a_weight_is_learned_as_the_matrix_of_its_filters(
    shape: tuple[int, ...], layout: torch.memory_format, decay: float
):
    ours = weight(shape)
    ours.data = ours.data.contiguous(memory_format=layout)
    optimizer = Muon([ours], Recipe(weight_decay=decay))
    matrix = nn.Parameter(weight(shape).detach().flatten(1))
    oracle = torch.optim.Muon([matrix], lr=0.1, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    for gradient, lr in zip(gradients(shape), RATES, strict=True):
        before = matrix.detach().clone()
        optimizer.set_lr(lr)
        ours.grad = gradient.contiguous(memory_format=layout)
        optimizer.step()
        oracle.param_groups[0]["lr"] = lr
        matrix.grad = gradient.flatten(1)
        oracle.step()
        assert not torch.allclose(matrix, before)
        assert torch.allclose(ours.detach().flatten(1), matrix, rtol=1e-12, atol=1e-14)
    momentum = oracle.state[matrix]["momentum_buffer"]
    assert torch.equal(optimizer.state[ours]["momentum_buffer"], momentum)
    assert Muon.state_shapes(shape) == {"momentum_buffer": tuple(momentum.shape)}


@pytest.mark.parametrize("shape", [(), (5,)], ids=str)
def test_biases_and_scalars_are_learned_by_adamw(shape: tuple[int, ...]):
    ours, theirs = weight(shape), weight(shape)
    optimizer = Muon([ours], Recipe(weight_decay=0.1))
    oracle = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1)
    for gradient, lr in zip(gradients(shape), RATES, strict=True):
        optimizer.set_lr(lr)
        ours.grad = gradient.clone()
        optimizer.step()
        oracle.param_groups[0]["lr"] = lr
        theirs.grad = gradient.clone()
        oracle.step()
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    assert {n: tuple(v.shape) for n, v in optimizer.state[ours].items()} == Muon.state_shapes(
        shape
    )


def test_the_update_has_the_size_of_adamws_and_singular_values_near_one():
    """Jordan et al.: five iterations lead to 0.7 to 1.2; Liu et al.: a root mean square of 0.2."""
    ours = nn.Parameter(torch.zeros(32, 8, 3, 3))
    optimizer = Muon([ours], Recipe(lr=1.0, weight_decay=0.0))
    generator = torch.Generator().manual_seed(0)
    ours.grad = torch.randn(ours.shape, generator=generator)
    optimizer.step()
    update = -ours.detach().flatten(1) / (0.2 * math.sqrt(72))
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert ours.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)
    assert (update @ ours.grad.flatten(1).T).trace() > 0


def test_a_parameter_without_a_gradient_stays():
    ours, bias = weight((4, 2, 3, 3)), weight((4,))
    before = ours.detach().clone()
    optimizer = Muon([ours, bias], Recipe(weight_decay=0.1))
    bias.grad = torch.ones_like(bias)
    optimizer.step()
    assert torch.equal(ours, before)
    assert optimizer.state[ours] == {}
