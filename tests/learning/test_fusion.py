"""Fusion against its optimality conditions and scikit-learn."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from rayff.learning.fusion import Fusion, can_fuse, fit_fusion, fusion_inputs

Sample = tuple[NDArray[np.float32], NDArray[np.int64]]


def sample(
    layers: int = 3, images: int = 120, classes: int = 4, *, seed: int = 0, signal: float = 1.0
) -> Sample:
    """Return logits of layers that know a little of the label, of different scales."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, images)
    logits = generator.normal(size=(layers, images, classes))
    logits += signal * np.eye(classes)[labels]
    logits *= 10.0 ** np.arange(layers)[:, None, None]
    return logits.astype(np.float32), labels


def scores(fusion: Fusion, logits: NDArray[np.float32]) -> NDArray[np.float64]:
    return fusion_inputs(logits) @ fusion.weight.T.astype(np.float64) + fusion.bias


def test_inputs_have_the_classes_of_layer_0_first() -> None:
    logits = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    assert fusion_inputs(logits).tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


def test_hits_are_those_of_the_largest_score() -> None:
    weight = np.array([[1, 0, 0, 0], [0, 0, 0, 1]], np.float32)  # class 0 of layer 0, 1 of layer 1
    fusion = Fusion(weight=weight, bias=np.array([0.0, 0.5], np.float32))
    logits = np.array([[[1, 9], [0, 9], [3, 9]], [[9, 0], [9, 0], [9, 2]]], np.float32)
    # scores (1, 0.5), (0, 0.5), (3, 2.5): classes 0, 1, 0
    assert fusion.hits(logits, np.array([0, 1, 0])) == 3
    assert fusion.hits(logits, np.array([1, 1, 1])) == 1


def test_it_does_without_torchs_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose import takes as long as that of torch."""
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)
    assert fit_fusion(*sample()) is not None


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_gradient_vanishes_at_the_optimum(data: st.DataObject) -> None:
    layers, classes = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 5))
    penalty = data.draw(st.sampled_from([0.5, 5.0, 50.0]))
    logits, labels = sample(layers, 80, classes, seed=data.draw(st.integers(0, 999)))
    fusion = fit_fusion(logits, labels, penalty)
    assert fusion is not None
    inputs = torch.from_numpy(fusion_inputs(logits))
    deviation = inputs.std(dim=0, unbiased=False)
    weight = torch.from_numpy(fusion.weight).double() * deviation
    bias = torch.from_numpy(fusion.bias).double() + weight @ (inputs.mean(dim=0) / deviation)
    weight.requires_grad_()
    bias.requires_grad_()
    standard = (inputs - inputs.mean(dim=0)) / deviation
    loss = torch.nn.functional.cross_entropy(
        standard @ weight.T + bias, torch.from_numpy(labels), reduction="sum"
    )
    loss = loss + penalty / 2 * weight.square().sum()
    loss.backward()
    for gradient in (weight.grad, bias.grad):
        assert gradient is not None
        assert gradient.abs().max() / len(labels) < 2e-6  # 1e-6, and what float32 adds


@pytest.mark.parametrize("penalty", [0.2, 2.0, 20.0])
def test_it_is_the_regression_of_scikit_learn(penalty: float) -> None:
    logits, labels = sample(seed=7)
    inputs = fusion_inputs(logits)
    standard = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    reference = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000)
    reference.fit(standard, labels)
    expected = reference.decision_function(standard)
    fusion = fit_fusion(logits, labels, penalty)
    assert fusion is not None
    found = scores(fusion, logits)
    # scores are known up to a constant for each image
    found -= found.mean(axis=1, keepdims=True)
    expected -= expected.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_it_finds_the_layers_that_know() -> None:
    logits, labels = sample(layers=4, images=2000, signal=0.0)
    generator = np.random.default_rng(3)
    logits[2] += 1e2 * 2.5 * np.eye(4, dtype=np.float32)[labels]
    other_logits, other_labels = sample(layers=4, images=2000, signal=0.0, seed=9)
    other_logits[2] += 1e2 * 2.5 * np.eye(4, dtype=np.float32)[other_labels]
    alone = (other_logits[2].argmax(axis=1) == other_labels).sum()
    fusion = fit_fusion(logits[:, generator.permutation(2000)], labels)
    assert fusion is not None
    assert fusion.hits(other_logits, other_labels) < alone, "labels of other images"
    fusion = fit_fusion(logits, labels)
    assert fusion is not None
    assert fusion.hits(other_logits, other_labels) > 0.99 * alone


def test_it_repeats_bit_for_bit_whatever_the_number_of_threads() -> None:
    logits, labels = sample(layers=6, images=500, classes=5)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(fit_fusion(logits, labels))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    for other in found[1:]:
        assert other is not None
        assert found[0] is not None
        assert np.array_equal(other.weight, found[0].weight)
        assert np.array_equal(other.bias, found[0].bias)


@pytest.mark.parametrize("constant", [0.0, 3.7, -1e6])
def test_an_input_that_never_changes_does_not_count(constant: float) -> None:
    logits, labels = sample()
    without = fit_fusion(logits, labels)
    dead = np.full((1, *logits.shape[1:]), constant, np.float32)
    fusion = fit_fusion(np.concatenate([logits, dead]), labels)
    assert fusion is not None
    assert without is not None
    assert np.abs(fusion.weight[:, 12:]).max() < 1e-6
    np.testing.assert_allclose(fusion.weight[:, :12], without.weight, atol=1e-4)


def test_nor_does_one_that_changes_by_rounding_alone() -> None:
    logits, labels = sample()
    leak = 1e-7 * np.eye(4, dtype=np.float32)[labels][None]
    fusion = fit_fusion(np.concatenate([logits, leak]), labels)
    assert fusion is not None
    assert np.abs(fusion.weight[:, 12:]).max() < 1e-4, "it would tell the labels"


def test_logits_that_are_not_finite_have_none() -> None:
    logits, labels = sample()
    logits[0, 0, 0] = np.inf
    assert fit_fusion(logits, labels) is None


def test_one_layer_or_very_many_classes_have_none() -> None:
    assert can_fuse(17, 10)
    assert can_fuse(17, 200)
    assert not can_fuse(17, 1000)
    assert not can_fuse(1, 10)
