"""Temperatures and calibration errors against hand-written values and a float64 reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rayff.learning.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    early_exits,
    fit_temperature,
    reliability,
)


def likelihood(
    logits: NDArray[np.float64], labels: NDArray[np.int64], temperature: float
) -> float:
    """Negative log-likelihood with the targets of Platt, by torch in float64."""
    log_probability = torch.from_numpy(logits / temperature).log_softmax(dim=1).numpy()
    num_images, num_classes = logits.shape
    doubt = 1 / (num_images + 2)
    target = np.full_like(logits, doubt / (num_classes - 1))
    target[np.arange(num_images), labels] = 1 - doubt
    return float(-(target * log_probability).sum())


class TestTemperature:
    @pytest.mark.parametrize(("lead", "right"), [(1.0, 6), (5.0, 6), (0.01, 9), (300.0, 7)])
    def test_of_two_classes_whose_leads_are_all_the_same(self, lead: float, right: int) -> None:
        """Ten images, of which so many are right: the probability of the lead is their share.

        Platt's targets are 11/12 for the true class and 1/12 for the other.
        """
        logits = np.array([[lead, 0.0]] * 10)
        labels = np.array([0] * right + [1] * (10 - right))
        share = (right * 11 + (10 - right)) / 120
        expected = lead / math.log(share / (1 - share))
        assert fit_temperature(logits, labels) == pytest.approx(expected, rel=1e-8)

    def test_without_a_mistake_the_probability_is_that_of_n_plus_1_in_n_plus_2(self) -> None:
        temperature = fit_temperature(np.array([[2.0, 0.0]] * 8), np.zeros(8, np.int64))
        probability = 1 / (1 + math.exp(-2 / temperature))
        assert probability == pytest.approx(9 / 10)

    def test_logits_that_say_nothing_have_one(self) -> None:
        assert fit_temperature(np.full((5, 3), 7.0), np.array([0, 1, 2, 0, 1])) == 1.0

    def test_logits_that_are_worse_than_chance_have_the_largest(self) -> None:
        temperature = fit_temperature(np.array([[4.0, 0.0]] * 9), np.ones(9, np.int64))
        assert temperature == pytest.approx(MAX_TEMPERATURE, rel=1e-3)

    @given(data=st.data())
    def test_no_other_is_more_likely(self, data: st.DataObject) -> None:
        seed = data.draw(st.integers(0, 2**31))
        images, classes = data.draw(st.integers(1, 40)), data.draw(st.integers(2, 12))
        scale = 10 ** data.draw(st.floats(-3, 3))
        generator = np.random.default_rng(seed)
        logits = scale * generator.normal(size=(images, classes))
        labels = generator.integers(0, classes, images)
        found = fit_temperature(logits, labels)
        assert MIN_TEMPERATURE <= found <= MAX_TEMPERATURE
        best = likelihood(logits, labels, found)
        for factor in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0):
            other = min(max(factor * found, MIN_TEMPERATURE), MAX_TEMPERATURE)
            assert best <= likelihood(logits, labels, other) * (1 + 1e-12)

    @given(scale=st.floats(1e-3, 1e3), shift=st.floats(-50, 50))
    def test_it_scales_with_the_logits_and_a_shift_does_not_count(
        self, scale: float, shift: float
    ) -> None:
        generator = np.random.default_rng(5)
        labels = generator.integers(0, 4, 60)
        logits = generator.normal(size=(60, 4)) + 2 * np.eye(4)[labels]
        expected = scale * fit_temperature(logits, labels)
        assert fit_temperature(scale * (logits + shift), labels) == pytest.approx(expected)


class TestReliability:
    def test_of_bins_by_hand(self) -> None:
        """Bins of 0.25, open on the left: 0.25 is in the first, 0.26 and 0.5 in the second."""
        probability = np.array([0.25, 0.26, 0.5, 0.9, 1.0, 0.8, 0.95])
        correct = np.array([True, False, True, True, True, True, False])
        found = reliability(probability, correct, bins=4)
        assert found.counts.tolist() == [1, 2, 0, 4]
        assert found.probability.tolist() == pytest.approx([0.25, 0.38, 0, 0.9125])
        assert found.accuracy.tolist() == [1.0, 0.5, 0.0, 0.75]
        assert found.mean_probability == pytest.approx(4.66 / 7)
        # gaps 0.75, 0.12 and 0.1625 for 1, 2 and 4 images
        assert found.calibration_error == pytest.approx((0.75 + 2 * 0.12 + 4 * 0.1625) / 7)

    def test_there_are_15_bins(self) -> None:
        found = reliability(np.array([0.0, 0.06, 0.5, 1.0], np.float32), np.array([True] * 4))
        assert len(found.counts) == 15
        assert found.counts[[0, 7, 14]].tolist() == [2, 1, 1]

    @given(st.integers(0, 2**31), st.integers(1, 200))
    def test_the_error_lies_between_the_gap_of_the_means_and_one(
        self, seed: int, images: int
    ) -> None:
        generator = np.random.default_rng(seed)
        probability, correct = generator.random(images), generator.random(images) < 0.7
        found = reliability(probability, correct)
        assert found.counts.sum() == images
        assert found.mean_probability == pytest.approx(probability.mean())
        gap = abs(probability.mean() - correct.mean())
        assert gap - 1e-12 <= found.calibration_error <= 1

    def test_it_is_zero_for_probabilities_that_hold(self) -> None:
        probability = np.repeat([0.25, 0.75], 4)
        correct = np.array([True, False, False, False, True, True, True, False])
        assert reliability(probability, correct).calibration_error == 0.0


class TestEarlyExit:
    PROBABILITY = np.array([[0.5, 0.9, 0.2], [0.6, 0.3, 0.4], [0.7, 0.1, 0.3]])
    CORRECT = np.array([[False, True, False], [True, False, False], [True, False, True]])

    @pytest.mark.parametrize(
        ("threshold", "mean_layers", "accuracy"),
        [
            (0.0, 2.0, 1 / 3),  # all stop at once, behind two layers
            (0.5, 10 / 3, 2 / 3),  # the third image goes on to the end, behind six
            (0.6, (4 + 2 + 6) / 3, 1.0),
            (0.9, (6 + 2 + 6) / 3, 1.0),
            (1.0, 6.0, 2 / 3),
        ],
    )
    def test_an_image_stops_at_the_first_depth_that_reaches_the_threshold(
        self, threshold: float, mean_layers: float, accuracy: float
    ) -> None:
        (found,) = early_exits(self.PROBABILITY, self.CORRECT, (2, 4, 6), [threshold])
        assert found.threshold == threshold
        assert found.mean_layers == pytest.approx(mean_layers)
        assert found.accuracy == pytest.approx(accuracy)
