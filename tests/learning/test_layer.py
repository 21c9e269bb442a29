"""The layer and its autograd step against a direct computation in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from rayff.kernels.dropout_bits import drawn_bytes
from rayff.learning.autograd import autograd_step
from rayff.learning.generators import Share
from rayff.learning.layer import CWConv
from rayff.learning.losses import local_loss
from rayff.models.architecture import LayerSpec
from tests.helpers.layers import CPU
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


def layer_of(shape: str, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> CWConv:
    spec = LayerSpec(index=5, in_channels=2, out_channels=6, **{"in_size": 8, **SHAPES[shape]})
    return CWConv(spec, CLASSES, dropout=dropout, seed=11, dtype=dtype).to(dtype)


def images_for(layer: CWConv) -> Tensor:
    spec = layer.spec
    shape = (len(LABELS), spec.in_channels, spec.in_size, spec.in_size)
    return torch.randn(shape, dtype=torch.float64)


def state_of(layer: CWConv, step: int) -> Tensor | None:
    share = Share(step=step, batch_size=len(LABELS))
    return layer.dropout_state(share, CPU) if layer.dropped else None


def learn(layer: CWConv, x: Tensor, step: int = 0) -> tuple[Tensor, Tensor]:
    """Leave the gradient in the weight; return features and loss."""
    labels = torch.tensor(LABELS)
    features, backward = autograd_step(layer, x, labels, len(LABELS), state_of(layer, step))
    return features, backward()


def expected_step(layer: CWConv, x: Tensor, step: int = 0) -> direct.Step:
    weight = layer.weight.detach().double().numpy()
    mask, keep = np.float64(1), 1 - layer.dropped / 256
    if (state := state_of(layer, step)) is not None:
        out = (len(LABELS), 6, layer.spec.out_size, layer.spec.out_size)
        kept = drawn_bytes(state, torch.Size(out)) >= layer.dropped
        mask = kept.permute(0, 3, 1, 2).double().numpy()
    return direct.step(x.double().numpy(), weight, LABELS, layer.spec, CLASSES, mask, keep)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dropout", "dropped"), [(0.0, 0), (0.2, 51), (0.75, 192)])
def test_a_step_follows_the_formulas(shape: str, dropout: float, dropped: int):
    layer = layer_of(shape, dropout)
    assert layer.dropped == dropped
    x = images_for(layer)
    expected = expected_step(layer, x, step=9)
    h = layer.activation(x, state_of(layer, 9))
    logits, losses = local_loss(layer.loss, h, torch.tensor(LABELS), CLASSES)
    features, loss = learn(layer, x, step=9)

    np.testing.assert_allclose(h.detach(), expected.h, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(logits.detach(), expected.goodness, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(features, expected.features, rtol=1e-10, atol=1e-12)
    assert loss.item() == pytest.approx(expected.loss, rel=1e-12)
    assert losses.mean().item() == pytest.approx(expected.loss, rel=1e-12)
    np.testing.assert_allclose(layer.weight.grad, expected.gradient, rtol=1e-10, atol=1e-13)
    assert np.abs(expected.gradient).max() > 1e-3, "the comparison is not of zeros"


@pytest.mark.parametrize("shape", ["3x3", "stride 2", "pool and 5x5"])
def test_the_gradient_is_the_slope_of_the_loss(shape: str):
    layer = layer_of(shape)
    x = images_for(layer)
    learn(layer, x)
    weight, gradient = layer.weight.detach().numpy(), layer.weight.grad.numpy()

    def loss(moved: np.ndarray) -> float:
        return direct.step(x.numpy(), moved, LABELS, layer.spec, CLASSES).loss

    for place in np.ndindex(*weight.shape):
        nudge = np.zeros_like(weight)
        nudge[place] = 1e-6
        slope = (loss(weight + nudge) - loss(weight - nudge)) / 2e-6
        assert slope == pytest.approx(gradient[place], abs=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_single_precision_stays_near_the_formulas(shape: str):
    layer = layer_of(shape, dtype=torch.float32)
    x = images_for(layer).float()
    expected = expected_step(layer, x)
    features, loss = learn(layer, x)
    np.testing.assert_allclose(features, expected.features, atol=1e-4)
    assert loss.item() == pytest.approx(expected.loss, rel=1e-5)
    np.testing.assert_allclose(layer.weight.grad, expected.gradient, atol=1e-5)


def test_half_precision_keeps_weights_logits_and_gradient_in_single():
    layer = CWConv(layer_of("3x3").spec, CLASSES, seed=11, dtype=torch.bfloat16)
    x = images_for(layer)
    expected = expected_step(layer, x)
    features, loss = learn(layer, x.bfloat16())
    assert features.dtype == torch.bfloat16
    assert {loss.dtype, layer.weight.dtype, layer.weight.grad.dtype} == {torch.float32}
    assert layer(x)[1].dtype == torch.float32
    # bfloat16 has 8 bits: a few in a thousand on values of size one
    np.testing.assert_allclose(features.float(), expected.features, atol=0.1)
    np.testing.assert_allclose(layer.weight.grad, expected.gradient, atol=0.01)


class TestForward:
    def test_evaluation_has_no_dropout(self):
        layer = layer_of("pool", dropout=0.75)
        x = images_for(layer)
        layer.dropped = 0
        expected = expected_step(layer, x)
        layer.dropped = 192
        features, logits = layer(x)
        np.testing.assert_allclose(features, expected.features, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(logits.detach(), expected.goodness, rtol=1e-12)

    def test_channels_are_grouped_in_their_order(self):
        h = torch.arange(6.0).reshape(1, 6, 1, 1).expand(1, 6, 4, 4)
        logits, _ = local_loss(layer_of("1x1").loss, h, None, CLASSES)
        assert logits.tolist() == [[0.5, 2.5, 4.5]]

    def test_features_are_normalised_for_each_image_and_group(self):
        scale = torch.tensor([1.0, 1.0, 10.0, 10.0, 0.1, 0.1]).reshape(1, 6, 1, 1)
        h = torch.rand(2, 6, 8, 8, dtype=torch.float64) * scale
        each = layer_of("3x3").features(h).reshape(2, 3, -1)
        np.testing.assert_allclose(each.mean(dim=2), 0, atol=1e-12)
        np.testing.assert_allclose(each.var(dim=2, correction=0), 1, atol=0.02)


class TestDetachment:
    def test_no_gradient_reaches_the_input_or_its_source(self):
        layer = layer_of("3x3")
        source = torch.nn.Conv2d(2, 2, 1).double()
        x = source(images_for(layer))
        learn(layer, x)
        assert source.weight.grad is None
        assert source.bias.grad is None
        assert torch.autograd.grad(layer.activation(x).sum(), x, allow_unused=True) == (None,)

    def test_features_and_loss_have_no_graph(self):
        layer = layer_of("3x3")
        x = images_for(layer)
        assert not any(each.requires_grad for each in (*learn(layer, x), layer(x)[0]))

    def test_only_the_weights_learn(self):
        layer = layer_of("3x3")
        assert [name for name, _ in layer.named_parameters()] == ["weight"]
        assert list(layer.buffers()) == []


class TestStep:
    def test_features_come_from_the_weights_before_the_step(self):
        layer = layer_of("3x3")
        x, optimizer = images_for(layer), SGD([layer.weight], lr=10.0)
        before = expected_step(layer, x)
        features, _ = learn(layer, x)
        optimizer.step()
        np.testing.assert_allclose(features, before.features, rtol=1e-10, atol=1e-12)
        assert np.abs(expected_step(layer, x).features - before.features).max() > 0.1

    def test_a_gradient_is_that_of_its_batch_alone(self):
        layer = layer_of("3x3")
        for _ in range(3):
            x = images_for(layer)
            learn(layer, x)
            gradient = expected_step(layer, x).gradient
            np.testing.assert_allclose(layer.weight.grad, gradient, rtol=1e-12, atol=1e-14)

    def test_each_step_drops_other_activations(self):
        layer = layer_of("3x3", dropout=0.5)
        x = images_for(layer)
        first, second, again = (layer.activation(x, state_of(layer, step)) for step in (0, 1, 1))
        assert not torch.equal(first == 0, second == 0)
        assert torch.equal(second, again)


class TestInitialWeights:
    def test_they_are_kaiming_normal_by_fan_out(self):
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
