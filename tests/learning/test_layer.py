"""The layer and its plain rule against a direct computation in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from rayff.learning.autograd import local_step, plain_rule
from rayff.learning.generators import DropoutGenerator, Share
from rayff.learning.layer import CWConv
from rayff.models.architecture import LayerSpec
from tests.learning import direct

CLASSES = 3
LABELS = [2, 0, 1]
SHAPES = {
    "3x3": {"kernel_size": 3},
    "1x1": {"kernel_size": 1},
    "5x5": {"kernel_size": 5},
    "stride 2": {"kernel_size": 3, "stride": 2},
    "stride 2 of an odd size": {"kernel_size": 3, "stride": 2, "in_size": 7},
    "1x1 of stride 2": {"kernel_size": 1, "stride": 2},
    "pool": {"kernel_size": 3, "pool": True},
    "pool and 5x5": {"kernel_size": 5, "pool": True},
    "pool and stride 2": {"kernel_size": 3, "pool": True, "stride": 2},
}


def spec_of(shape: str) -> LayerSpec:
    return LayerSpec(index=5, in_channels=2, out_channels=6, **{"in_size": 8, **SHAPES[shape]})


def layer_of(spec: LayerSpec, dropout: float = 0.0, dtype=torch.float64) -> CWConv:
    return CWConv(spec, CLASSES, dropout=dropout, seed=11, dtype=dtype).to(dtype)


def images_for(spec: LayerSpec) -> Tensor:
    shape = (len(LABELS), spec.in_channels, spec.in_size, spec.in_size)
    return torch.randn(shape, dtype=torch.float64)


def whole(step: int) -> Share:
    return Share(step=step, batch_size=len(LABELS))


def no_step(layer: CWConv) -> Optimizer:
    return SGD([layer.weight], lr=0.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.75])
def test_a_step_is_what_the_formulas_say(shape: str, dropout: float):
    spec = spec_of(shape)
    layer, x = layer_of(spec, dropout), images_for(spec)
    dropped = {0.0: 0, 0.2: 51, 0.75: 192}[dropout]
    out = (len(LABELS), 6, spec.out_size, spec.out_size)
    stream = DropoutGenerator(seed=11, layer_index=5, share=whole(9))
    mask = stream.keep_mask(torch.empty(out), dropped).numpy()
    expected = direct.step(
        x.numpy(),
        layer.weight.detach().numpy(),
        LABELS,
        spec,
        CLASSES,
        mask,
        keep=1 - dropped / 256,
    )

    h = layer.activation(x, whole(9))
    features, loss = local_step(plain_rule, layer, no_step(layer), x, torch.tensor(LABELS), step=9)

    assert h.shape == out
    np.testing.assert_allclose(h.detach(), expected.h, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(
        layer.goodness(h).detach(), expected.goodness, rtol=1e-12, atol=1e-13
    )
    np.testing.assert_allclose(features, expected.features, rtol=1e-10, atol=1e-12)
    assert loss.item() == pytest.approx(expected.loss, rel=1e-12)
    np.testing.assert_allclose(layer.weight.grad, expected.gradient, rtol=1e-10, atol=1e-13)
    assert np.abs(expected.gradient).max() > 1e-3, "the comparison is of something"


@pytest.mark.parametrize("shape", ["3x3", "stride 2", "pool and 5x5"])
def test_the_gradient_is_the_slope_of_the_loss(shape: str):
    spec = spec_of(shape)
    layer, x = layer_of(spec), images_for(spec)
    local_step(plain_rule, layer, no_step(layer), x, torch.tensor(LABELS), step=0)
    weight, gradient = layer.weight.detach().numpy(), layer.weight.grad.numpy()

    def loss(moved: np.ndarray) -> float:
        return direct.step(x.numpy(), moved, LABELS, spec, CLASSES).loss

    for place in np.ndindex(*weight.shape):
        nudge = np.zeros_like(weight)
        nudge[place] = 1e-6
        slope = (loss(weight + nudge) - loss(weight - nudge)) / 2e-6
        assert slope == pytest.approx(gradient[place], abs=1e-7)


@pytest.mark.parametrize("shape", ["3x3", "1x1 of stride 2", "pool and 5x5"])
def test_the_gradient_passes_the_numerical_check_of_autograd(shape: str):
    spec = spec_of(shape)
    layer, x = layer_of(spec, dropout=0.2), images_for(spec)

    def loss(weight: Tensor) -> Tensor:
        h = torch.func.functional_call(_Activation(layer), {"layer.weight": weight}, (x,))
        return torch.nn.functional.cross_entropy(layer.goodness(h), torch.tensor(LABELS))

    weight = layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (weight,))


class _Activation(torch.nn.Module):
    """Training's activation as a forward pass, which functional_call can call."""

    def __init__(self, layer: CWConv) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.activation(x, whole(4))


@pytest.mark.parametrize("shape", SHAPES)
def test_single_precision_stays_near_the_formulas(shape: str):
    spec = spec_of(shape)
    layer, x = layer_of(spec, dtype=torch.float32), images_for(spec).float()
    expected = direct.step(
        x.double().numpy(), layer.weight.detach().double().numpy(), LABELS, spec, CLASSES
    )
    features, loss = local_step(plain_rule, layer, no_step(layer), x, torch.tensor(LABELS), step=0)
    np.testing.assert_allclose(features, expected.features, atol=1e-4)
    assert loss.item() == pytest.approx(expected.loss, rel=1e-5)
    np.testing.assert_allclose(layer.weight.grad, expected.gradient, atol=1e-5)


def test_half_precision_keeps_weights_goodness_and_gradient_in_single():
    spec = spec_of("3x3")
    layer = CWConv(spec, CLASSES, seed=11, dtype=torch.bfloat16)
    x = images_for(spec)
    features, loss = local_step(
        plain_rule, layer, no_step(layer), x.bfloat16(), torch.tensor(LABELS), step=0
    )
    assert features.dtype == torch.bfloat16
    assert {loss.dtype, layer.weight.dtype, layer.weight.grad.dtype} == {torch.float32}
    assert layer(x)[1].dtype == torch.float32
    expected = direct.step(
        x.numpy(), layer.weight.detach().double().numpy(), LABELS, spec, CLASSES
    )
    # bfloat16 has 8 bits: a few in a thousand on values of size one
    np.testing.assert_allclose(features.float(), expected.features, atol=0.1)
    np.testing.assert_allclose(layer.weight.grad, expected.gradient, atol=0.01)


class TestForward:
    def test_without_a_step_there_is_no_dropout(self):
        spec = spec_of("pool")
        layer, x = layer_of(spec, dropout=0.75), images_for(spec)
        expected = direct.step(x.numpy(), layer.weight.detach().numpy(), LABELS, spec, CLASSES)
        features, goodness = layer(x)
        np.testing.assert_allclose(features, expected.features, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(goodness.detach(), expected.goodness, rtol=1e-12)

    def test_channels_are_grouped_in_their_order(self):
        layer = layer_of(spec_of("1x1"))
        h = torch.arange(6.0).reshape(1, 6, 1, 1).expand(1, 6, 4, 4)
        assert layer.goodness(h).tolist() == [[0.5, 2.5, 4.5]]

    def test_features_are_normalised_image_by_image_and_group_by_group(self):
        layer = layer_of(spec_of("3x3"))
        h = torch.rand(2, 6, 8, 8, dtype=torch.float64) * torch.tensor(
            [1.0, 1.0, 10.0, 10.0, 0.1, 0.1]
        ).reshape(1, 6, 1, 1)
        each = layer.features(h).reshape(2, 3, -1)
        np.testing.assert_allclose(each.mean(dim=2), 0, atol=1e-12)
        np.testing.assert_allclose(each.var(dim=2, correction=0), 1, atol=0.02)


class TestDetachment:
    @pytest.fixture
    def layer(self) -> CWConv:
        return layer_of(spec_of("3x3"))

    def test_no_gradient_reaches_the_input(self, layer: CWConv):
        x = images_for(layer.spec).requires_grad_()
        local_step(plain_rule, layer, no_step(layer), x, torch.tensor(LABELS), step=0)
        assert x.grad is None
        assert torch.autograd.grad(layer.activation(x).sum(), x, allow_unused=True) == (None,)

    def test_no_gradient_reaches_what_the_input_was_made_from(self, layer: CWConv):
        source = torch.nn.Conv2d(2, 2, 1).double()
        x = source(images_for(layer.spec))
        local_step(plain_rule, layer, no_step(layer), x, torch.tensor(LABELS), step=0)
        assert source.weight.grad is None
        assert source.bias.grad is None

    def test_features_and_loss_leave_without_a_graph(self, layer: CWConv):
        x = images_for(layer.spec)
        features, loss = local_step(
            plain_rule, layer, no_step(layer), x, torch.tensor(LABELS), step=0
        )
        assert not features.requires_grad
        assert not loss.requires_grad
        assert not layer(x)[0].requires_grad

    def test_the_weights_are_all_that_learns(self, layer: CWConv):
        assert [name for name, _ in layer.named_parameters()] == ["weight"]
        assert list(layer.buffers()) == []


class TestStep:
    def test_features_are_those_of_the_weights_before_the_step(self):
        spec = spec_of("3x3")
        layer, x = layer_of(spec), images_for(spec)
        before = layer.weight.detach().clone()
        labels = torch.tensor(LABELS)
        features, _ = local_step(
            plain_rule, layer, SGD([layer.weight], lr=10.0), x, labels, step=0
        )
        of_before = direct.step(x.numpy(), before.numpy(), LABELS, spec, CLASSES)
        of_after = direct.step(x.numpy(), layer.weight.detach().numpy(), LABELS, spec, CLASSES)
        np.testing.assert_allclose(features, of_before.features, rtol=1e-10, atol=1e-12)
        assert np.abs(of_after.features - of_before.features).max() > 0.1

    def test_the_weights_move_by_this_batchs_gradient_alone(self):
        spec = spec_of("3x3")
        layer, labels = layer_of(spec), torch.tensor(LABELS)
        optimizer = SGD([layer.weight], lr=0.5)
        for step in range(3):
            before, x = layer.weight.detach().clone(), images_for(spec)
            local_step(plain_rule, layer, optimizer, x, labels, step=step)
            gradient = direct.step(x.numpy(), before.numpy(), LABELS, spec, CLASSES).gradient
            np.testing.assert_allclose(
                layer.weight.detach(), before.numpy() - 0.5 * gradient, rtol=1e-12, atol=1e-14
            )

    def test_each_step_drops_other_activations(self):
        spec = spec_of("3x3")
        layer, x = layer_of(spec, dropout=0.5), images_for(spec)
        dropped = [
            (layer.activation(x, whole(step)) == 0) & (layer.activation(x) > 0) for step in (0, 1)
        ]
        assert not torch.equal(*dropped)
        assert torch.equal(layer.activation(x, whole(1)), layer.activation(x, whole(1)))


class TestFirstWeights:
    def test_they_are_kaiming_normal_over_the_outputs_a_pixel_feeds(self):
        spec = LayerSpec(index=0, in_channels=40, out_channels=60, kernel_size=3, in_size=8)
        weight = CWConv(spec, CLASSES, seed=1).weight.detach()
        # 21,600 normal numbers: their deviation is known to half a percent
        assert weight.std().item() == pytest.approx((2 / (60 * 9)) ** 0.5, rel=0.03)
        assert weight.mean().item() == pytest.approx(0, abs=0.002)
        beyond = (weight.abs() > 2 * weight.std()).double().mean().item()
        assert beyond == pytest.approx(0.0455, abs=0.01)

    def test_they_follow_from_the_seed_and_the_layers_number(self):
        def weight(seed: int, index: int) -> Tensor:
            spec = LayerSpec(index=index, in_channels=2, out_channels=6, kernel_size=3, in_size=8)
            return CWConv(spec, CLASSES, seed=seed).weight.detach()

        first = weight(3, 4)
        torch.manual_seed(99)
        assert torch.equal(weight(3, 4), first)
        assert not torch.equal(weight(3, 5), first)
        assert not torch.equal(weight(4, 4), first)
