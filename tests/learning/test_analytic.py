"""The analytic step against the autograd step, with the same dropout bytes."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayff.config.kernels import Kernels
from rayff.config.recipe import Recipe
from rayff.kernels import native
from rayff.kernels.convolution import backends
from rayff.kernels.precision import set_deterministic
from rayff.learning.analytic import AnalyticStep, analytic_forward, analytic_step
from rayff.learning.autograd import LayerStep, autograd_step
from rayff.learning.generators import Share
from rayff.learning.layer import CWConv
from rayff.learning.optimizers import optimizer_class
from rayff.models.architecture import LayerSpec
from tests.helpers.layers import CPU, DEVICES, SHAPES, relative

EDGE = 1e-5
"""Relative to their root mean square: nearer to zero, rounding decides an activation's sign."""


@pytest.fixture(autouse=True, scope="module")
def float32_without_tf32() -> None:
    set_deterministic()


def pair(
    spec: LayerSpec,
    kernels: Kernels,
    *,
    classes: int = 10,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> tuple[CWConv, CWConv]:
    """Return the same layer twice, for the autograd and for the analytic step."""
    plain = CWConv(spec, classes, dropout=0.2, seed=1, dtype=dtype).to(device)
    fast = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    fast.kernels = kernels
    return plain, fast


def has_edges(layer: CWConv, x: Tensor) -> bool:
    """Whether rounding decides the sign of an activation: its gradient would follow."""
    exact = copy.deepcopy(layer).double()
    exact.dtype, exact.kernels = torch.float64, Kernels()
    y = AnalyticStep(exact, x.double()).forward()
    return bool(y.abs().min() <= EDGE * y.square().mean().sqrt())


def batch_for(layer: CWConv, images: int) -> tuple[Tensor, Tensor]:
    """Return features that leave no activation at the edge, and labels."""
    spec, device = layer.spec, layer.weight.device
    shape = (images, spec.in_channels, spec.in_size, spec.in_size)
    for seed in range(100):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(layer.dtype)
        x = x.to(device)
        if not has_edges(layer, x):
            return x, torch.arange(images, device=device) % layer.num_classes
    raise AssertionError("no such features found")


def learn(
    step: LayerStep, layer: CWConv, x: Tensor, labels: Tensor, number: int = 0
) -> tuple[Tensor, Tensor]:
    """Leave the gradient in the weight; return features and loss."""
    share = Share(step=number, batch_size=len(labels))
    state = layer.dropout_state(share, x.device).to(x.device)
    features, backward = step(layer, x, labels, len(labels), state)
    return features, backward()


def assert_same_step(
    plain: CWConv, fast: CWConv, x: Tensor, labels: Tensor, within: float
) -> None:
    plain_x = x
    if x.is_cuda and x.dtype == torch.float32:  # of which cuDNN may multiply ten bits
        plain.dtype, plain, plain_x = torch.float64, plain.double(), x.double()
    expected = (*learn(autograd_step, plain, plain_x, labels), plain.weight.grad)
    found = (*learn(analytic_step, fast, x, labels), fast.weight.grad)
    assert found[0].dtype == x.dtype
    assert found[2].dtype == torch.float32
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) < within
    for one, other in zip(analytic_forward(fast, x), plain(plain_x), strict=True):
        assert relative(one, other) < within


def all_kernels(
    spec: LayerSpec, device: torch.device, dtype: torch.dtype = torch.float32
) -> list[Kernels]:
    return [Kernels(backend, backend) for backend in backends(spec, device, dtype)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
class TestEveryLayerOfTheThreeNetworks:
    def test_a_step_in_float32(self, shape: str, device: torch.device):
        plain, _ = pair(SHAPES[shape], Kernels(), device=device)
        x, labels = batch_for(plain, images=2)
        for kernels in all_kernels(SHAPES[shape], device):
            plain, fast = pair(SHAPES[shape], kernels, device=device)
            assert_same_step(plain, fast, x, labels, within=1e-5)

    def test_a_step_in_bfloat16(self, shape: str, device: torch.device):
        if SHAPES[shape].num_products > 5e7 and device == CPU:
            return  # seconds without units for bfloat16, on the paths of the smaller ones
        for kernels in all_kernels(SHAPES[shape], device, torch.bfloat16):
            plain, fast = pair(SHAPES[shape], kernels, dtype=torch.bfloat16, device=device)
            spec = plain.spec
            x = torch.randn(2, spec.in_channels, spec.in_size, spec.in_size).bfloat16()
            labels = torch.tensor([3, 0], device=device)
            assert_same_step(plain, fast, x.to(device), labels, within=2e-2)

    def test_the_weights_after_three_steps(self, shape: str, device: torch.device):
        """With SGD. AdamW divides each gradient by its own size and so makes the rounding of
        the smallest as large as a step, whatever the kernel."""
        plain, _ = pair(SHAPES[shape], Kernels(), device=device)
        before = plain.weight.detach().clone()
        x, labels = batch_for(plain, images=1)
        learn(autograd_step, plain, x, labels)
        lr = float(5e-3 * before.norm() / plain.weight.grad.norm())
        recipe = Recipe(optimizer="sgd", lr=lr, weight_decay=0.0)
        optimizer = optimizer_class("sgd")(plain.parameters(), recipe)
        inputs = []
        for number in range(3):
            inputs.append(batch_for(plain, images=1))
            learn(autograd_step, plain, *inputs[-1], number)
            optimizer.step()
        assert relative(plain.weight, before) > 0.01

        for kernels in all_kernels(SHAPES[shape], device):
            _, fast = pair(SHAPES[shape], kernels, device=device)
            optimizer = optimizer_class("sgd")(fast.parameters(), recipe)
            for number, (x, labels) in enumerate(inputs):
                learn(analytic_step, fast, x, labels, number)
                optimizer.step()
            assert relative(fast.weight, plain.weight) < 1e-5


@st.composite
def layers(draw: st.DrawFn) -> tuple[LayerSpec, int, int]:
    """Return a layer, its number of classes and a number of images."""
    classes = draw(st.integers(2, 5))
    spec = LayerSpec(
        index=draw(st.integers(0, 9)),
        in_channels=draw(st.integers(1, 20)),
        out_channels=classes * draw(st.integers(1, 8)),
        kernel_size=draw(st.sampled_from([1, 3, 5])),
        stride=draw(st.sampled_from([1, 2])),
        pool=draw(st.booleans()),
        in_size=draw(st.integers(2, 6)) * 2,
    )
    assume(spec.out_channels * spec.out_size**2 > classes)  # group norm needs two elements
    return spec, classes, draw(st.integers(1, 5))


def amplifies_rounding(layer: CWConv, x: Tensor, labels: Tensor) -> bool:
    """Whether features follow the rounding of their inputs: where dropout leaves only activations
    near zero, normalisation enlarges their error."""
    exact = copy.deepcopy(layer).double()
    exact.dtype, exact.kernels = torch.float64, Kernels()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features, _ = learn(analytic_step, exact, x.double(), labels)
    rounded, _ = learn(analytic_step, exact, x.double() * (1 + 1e-7 * noise), labels)
    return relative(rounded, features) > 2e-6


@settings(deadline=None, max_examples=200)
@given(case=layers(), data=st.data())
def test_any_layer(case: tuple[LayerSpec, int, int], data: st.DataObject):
    spec, classes, images = case
    known = backends(spec, CPU, torch.float32)
    kernels = Kernels(data.draw(st.sampled_from(known)), data.draw(st.sampled_from(known)))
    plain, fast = pair(spec, kernels, classes=classes)
    x, labels = batch_for(plain, images)
    assume(not amplifies_rounding(plain, x, labels))
    assert_same_step(plain, fast, x, labels, within=2e-5)


@pytest.mark.parametrize("kernels", [Kernels("conv", "unfold"), Kernels("unfold", "conv")])
def test_without_compiled_kernels(kernels: Kernels, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "missing", lambda: "no compiler")
    plain, fast = pair(SHAPES["200-200 k3 s1 16"], kernels)
    assert_same_step(plain, fast, *batch_for(plain, images=2), within=1e-5)


def test_the_bits_do_not_depend_on_the_number_of_threads():
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        _, layer = pair(SHAPES["100-100 k3 s1 32"], Kernels("conv", "winograd"))
        step = AnalyticStep(
            layer, torch.randn(3, 100, 32, 32, generator=torch.Generator().manual_seed(0))
        )
        found = step.pointwise(step.forward(), torch.tensor([0, 1, 2]), 3)
        results.append((found.features, found.gradient, found.goodness))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("backend", ["conv", "winograd"])
def test_nan_and_infinity_reach_the_loss(bad: float, backend: str):
    _, layer = pair(SHAPES["100-100 k3 s1 32"], Kernels(backend, backend))
    x = torch.randn(2, 100, 32, 32)
    x[1, 3, 5, 5] = bad
    assert not learn(analytic_step, layer, x, torch.tensor([0, 1]))[1].isfinite()


@pytest.mark.parametrize("step", [autograd_step, analytic_step])
def test_shares_add_up_to_the_batch(step: LayerStep):
    _, layer = pair(SHAPES["200-200 k3 s1 16"], Kernels("winograd", "winograd"))
    x, labels = batch_for(layer, images=5)

    def part(first: int, end: int) -> tuple[Tensor, Tensor]:
        share = Share(step=0, batch_size=5, first=first)
        state = layer.dropout_state(share, CPU)
        _, backward = step(layer, x[first:end], labels[first:end], 5, state)
        return backward(), layer.weight.grad.clone()

    (loss, gradient), first, second = part(0, 5), part(0, 2), part(2, 5)
    assert relative(first[0] + second[0], loss) < 1e-6
    assert relative(first[1] + second[1], gradient) < 1e-5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_has_the_memory_layout_of_the_weight(
    dtype: torch.dtype, device: torch.device
):
    for shape, spec in SHAPES.items():
        for kernels in all_kernels(spec, device, dtype):
            _, layer = pair(spec, kernels, dtype=dtype, device=device)
            x = torch.randn(1, spec.in_channels, spec.in_size, spec.in_size, device=device)
            learn(analytic_step, layer, x, torch.zeros(1, dtype=torch.int64, device=device))
            assert layer.weight.grad.stride() == layer.weight.stride(), (shape, kernels)
