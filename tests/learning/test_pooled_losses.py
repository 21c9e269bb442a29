"""The analytic step of every pooled loss against autograd on the map, in float64."""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayff.config.local_loss import LossConfig
from rayff.kernels import native
from rayff.learning.analytic import AnalyticStep, analytic_forward, analytic_step
from rayff.learning.autograd import LayerStep, autograd_step
from rayff.learning.generators import Share
from rayff.learning.layer import CWConv
from rayff.learning.rules import RULES
from rayff.models.architecture import LayerSpec
from tests.helpers.layers import CPU, DEVICES, relative

POOLED = (
    *("goodness", "squared_goodness", "channel_matrix", "linear", "linear_similarity"),
    "tests.helpers.losses:Spread",
)
CLASSES = 3
Found = dict[str, Tensor]


def layer_of(config: LossConfig, spec: LayerSpec, dropout: float = 0.2) -> CWConv:
    """Return a layer whose head has weights that are not zero."""
    layer = CWConv(spec, CLASSES, dropout=dropout, seed=1, loss=config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in layer.loss.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise / parameter.shape[-1:].numel() ** 0.5)
    return layer


def learn(step: LayerStep, layer: CWConv, x: Tensor, labels: Tensor) -> Found:
    share = Share(step=4, batch_size=len(labels))
    state = layer.dropout_state(share, x.device).to(x.device) if layer.dropped else None
    features, backward = step(layer, x, labels, len(labels), state)
    loss = backward()
    gradients = {name: p.grad.clone() for name, p in layer.named_parameters()}
    return {"features": features, "loss": loss, **gradients}


def in_float64(layer: CWConv) -> CWConv:
    exact = copy.deepcopy(layer).double()
    exact.dtype = torch.float64
    return exact


def assert_same(layer: CWConv, x: Tensor, labels: Tensor, within: float) -> None:
    expected = learn(autograd_step, in_float64(layer), x.double(), labels)
    fast = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    found = learn(analytic_step, fast, x, labels)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name == "loss.log_temperature":  # gradient = -sum(W * dL/dW), whose terms cancel
            scale = (layer.loss.weight.double() * expected["loss.weight"]).norm()
            assert (found[name].double() - value).abs() < within * scale, name
        else:
            assert relative(found[name], value) < within, name
    features, scores = analytic_forward(fast, x)
    wanted_features, wanted_scores = in_float64(layer)(x.double())
    assert relative(features, wanted_features) < within
    assert relative(scores, wanted_scores) < within


@st.composite
def cases(draw: st.DrawFn) -> tuple[LossConfig, LayerSpec, float, int]:
    config = LossConfig(
        name=draw(st.sampled_from(POOLED)),
        head_dim=draw(st.sampled_from([6, 64, 2048])),
        label_smoothing=draw(st.sampled_from([0.0, 0.1])),
        class_weights=draw(st.sampled_from([None, (0.5, 1.0, 2.0)])),
        temperature=draw(st.sampled_from([None, 0.5])),
        similarity_weight=draw(st.sampled_from([None, 0.5])),
    )
    spec = LayerSpec(
        index=draw(st.integers(0, 3)),
        in_channels=draw(st.integers(1, 6)),
        out_channels=CLASSES * draw(st.integers(2, 6)),  # group norm needs two elements
        kernel_size=draw(st.sampled_from([1, 3, 5])),
        stride=draw(st.sampled_from([1, 2])),
        pool=draw(st.booleans()),
        in_size=draw(st.sampled_from([4, 8, 12])),
    )
    return config, spec, draw(st.sampled_from([0.0, 0.2])), draw(st.integers(2, 5))


def at_an_edge(layer: CWConv, x: Tensor) -> bool:
    """Whether rounding decides a sign, channels hardly vary, or autograd in float32 is off too.

    Where a softmax is saturated, p - 1 keeps few digits of float32, whoever computes it.
    """
    y = AnalyticStep(in_float64(layer), x.double()).forward()
    near = y.abs().min() <= 1e-5 * y.square().mean().sqrt()
    generator = torch.Generator().manual_seed(0)

    def rounded(value: Tensor) -> Tensor:
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        return value.double() * (1 + 1e-7 * noise)

    labels = torch.arange(len(x)) % CLASSES
    exact = learn(autograd_step, in_float64(layer), x.double(), labels)
    other = in_float64(layer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(rounded(parameter))
    moved = learn(autograd_step, other, rounded(x), labels)
    narrow = learn(autograd_step, copy.deepcopy(layer), x, labels)
    return bool(near) or any(
        relative(moved[name], exact[name]) > 2e-6 or relative(narrow[name], exact[name]) > 1e-5
        for name in exact
    )


@pytest.mark.parametrize("compiled", [True, False])
def test_any_loss_of_any_layer(compiled: bool, monkeypatch: pytest.MonkeyPatch):
    if not compiled:
        monkeypatch.setattr(native, "missing", lambda: "no compiler")

    @settings(deadline=None, max_examples=120 if compiled else 40)
    @given(case=cases())
    def check(case: tuple[LossConfig, LayerSpec, float, int]) -> None:
        config, spec, dropout, images = case
        layer = layer_of(config, spec, dropout)
        shape = (images, spec.in_channels, spec.in_size, spec.in_size)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(images))
        assume(not at_an_edge(layer, x))
        assert_same(layer, x, torch.arange(images) % CLASSES, within=5e-5)

    check()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", POOLED)
def test_bfloat16_stays_near_float32(name: str, device: torch.device):
    spec = LayerSpec(index=1, in_channels=12, out_channels=48, kernel_size=3, in_size=16)
    x = torch.randn(8, 12, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(8, device=device) % CLASSES
    wide = layer_of(LossConfig(name=name), spec).to(device)
    narrow = copy.deepcopy(wide)
    narrow.dtype = torch.bfloat16
    expected = learn(analytic_step, wide.to(memory_format=torch.channels_last), x, labels)
    found = learn(analytic_step, narrow.to(memory_format=torch.channels_last), x, labels)
    for tensor, value in expected.items():
        assert relative(found[tensor], value) < 5e-2, tensor


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", [name for name in POOLED if name != "linear_similarity"])
def test_shares_of_a_batch_add_up(name: str, rule: str):
    spec = LayerSpec(index=1, in_channels=4, out_channels=12, kernel_size=3, in_size=8)
    layer = layer_of(LossConfig(name=name, label_smoothing=0.1), spec).double()
    layer.dtype = torch.float64
    x = torch.randn(5, 4, 8, 8, dtype=torch.float64)
    labels = torch.tensor([0, 2, 1, 1, 0])

    def part(first: int, end: int) -> list[Tensor]:
        state = layer.dropout_state(Share(step=0, batch_size=5, first=first), CPU)
        step = RULES[rule].step
        _, backward = step(layer, x[first:end], labels[first:end], 5, state)
        return [backward(), *(p.grad.clone() for p in layer.parameters())]

    for whole, *shares in zip(part(0, 5), part(0, 2), part(2, 5), strict=True):
        torch.testing.assert_close(sum(shares), whole)


@pytest.mark.parametrize("name", POOLED)
def test_gradients_have_the_memory_layout_of_their_parameters(name: str):
    spec = LayerSpec(index=1, in_channels=4, out_channels=12, kernel_size=3, in_size=8)
    layer = layer_of(LossConfig(name=name), spec).to(memory_format=torch.channels_last)
    learn(analytic_step, layer, torch.randn(3, 4, 8, 8), torch.tensor([0, 1, 2]))
    for parameter_name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride(), parameter_name


def test_the_gradient_of_heads_stays_in_the_layer():
    spec = LayerSpec(index=1, in_channels=4, out_channels=12, kernel_size=3, in_size=8)
    layer = layer_of(LossConfig(name="linear"), spec)
    x = torch.randn(3, 4, 8, 8, requires_grad=True)
    features, backward = analytic_step(layer, x, torch.tensor([0, 1, 2]), 3)
    backward()
    assert x.grad is None
    assert not features.requires_grad
