import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayff.learning.calibration import fit_temperature
from rayff.learning.readout import (
    MAX_SAMPLE_BYTES,
    Readouts,
    Temperatures,
    best_window,
    fit_temperatures,
    sample_size,
    window_hits,
)

# three layers, four images, two classes
LOGITS = torch.tensor(
    [
        [[3.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]],  # classes 0 0 1 1
        [[0.0, 1.0], [0.0, 2.0], [0.0, 1.0], [2.0, 0.0]],  # classes 1 1 1 0
        [[0.0, 1.0], [3.0, 0.0], [2.5, 0.0], [0.0, 0.5]],  # classes 1 0 0 1
    ]
)
LABELS = torch.tensor([0, 1, 1, 0])


class TestWindowHits:
    def test_hits_of_every_window(self):
        # window 0-1 sums to (3,1) (1,2) (0,2) (2,1): 0 1 1 0, all four right
        # window 0-2 sums to (3,2) (4,2) (2.5,2) (2,1.5): 0 0 0 0, two right
        # window 1-2 sums to (0,2) (3,2) (2.5,1) (2,0.5): 1 0 0 0, one right
        assert window_hits(LOGITS, LABELS).tolist() == [[2, 4, 2], [0, 3, 1], [0, 0, 0]]

    def test_one_layer_is_one_window(self):
        assert window_hits(LOGITS[:1], LABELS).tolist() == [[2]]

    def test_counts_of_batches_add_up_to_those_of_the_whole(self):
        parts = window_hits(LOGITS[:, :3], LABELS[:3]) + window_hits(LOGITS[:, 3:], LABELS[3:])
        assert (parts == window_hits(LOGITS, LABELS)).all()

    @given(data=st.data())
    def test_they_are_those_of_summing_every_window(self, data: st.DataObject):
        num_layers = data.draw(st.integers(1, 6))
        batch, classes = data.draw(st.integers(1, 5)), data.draw(st.integers(2, 4))
        count = num_layers * batch * classes
        numbers = data.draw(st.lists(st.integers(0, 6), min_size=count, max_size=count))
        labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=batch, max_size=batch))
        # sums are exact in float32, and a 64th a class leaves no tie
        whole = np.array(numbers).reshape(num_layers, batch, classes) + np.arange(classes) / 64
        hits = window_hits(torch.tensor(whole, dtype=torch.float32), torch.tensor(labels))
        assert hits.shape == (num_layers, num_layers)
        for first in range(num_layers):
            for last in range(num_layers):
                right = 0
                for image in range(batch if first <= last else 0):
                    votes = [
                        sum(whole[layer, image, c] for layer in range(first, last + 1))
                        for c in range(classes)
                    ]
                    right += votes.index(max(votes)) == labels[image]
                assert hits[first, last] == right


class TestBestWindow:
    def test_the_window_with_all_images_right_wins(self):
        assert best_window(window_hits(LOGITS, LABELS)) == (0, 1)

    @pytest.mark.parametrize(
        ("hits", "window"),
        [
            ([[1]], (0, 0)),
            ([[0]], (0, 0)),
            ([[5, 5], [0, 5]], (0, 0)),
            ([[4, 5], [0, 5]], (0, 1)),  # both end at 1: the one that starts first
            ([[4, 4], [0, 5]], (1, 1)),
            ([[1, 1, 5], [0, 5, 1], [0, 0, 5]], (1, 1)),  # what ends first, wherever it starts
            ([[1, 1, 1], [0, 1, 5], [0, 0, 5]], (1, 2)),
            ([[0, 0, 0], [0, 0, 0], [0, 0, 0]], (0, 0)),
        ],
    )
    def test_most_hits_win_and_the_shallowest_on_a_tie(
        self, hits: list[list[int]], window: tuple[int, int]
    ):
        assert best_window(np.array(hits)) == window

    @given(data=st.data())
    def test_no_other_window_is_better_or_as_good_and_shallower(self, data: st.DataObject):
        size = data.draw(st.integers(1, 6))
        count = size * size
        numbers = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
        hits = np.triu(np.array(numbers).reshape(size, size))
        first, last = best_window(hits)
        ranked = sorted((-hits[i, j], j, i) for i in range(size) for j in range(i, size))
        assert ranked[0] == (-hits[first, last], last, first)


class TestTemperatures:
    @pytest.mark.parametrize("window", [(0, 0), (0, 2), (1, 2), (2, 2)])
    def test_each_sum_of_the_window_and_the_last_layer_have_one(
        self, window: tuple[int, int]
    ) -> None:
        logits, labels = LOGITS.numpy(), LABELS.numpy()
        found = fit_temperatures(logits, labels, window)
        assert found is not None
        first, last = window
        expected = [
            fit_temperature(sum(logits[first : depth + 1].astype(np.float64)), labels)
            for depth in range(first, last + 1)
        ]
        assert found.window == tuple(expected)
        assert found.last == fit_temperature(logits[2].astype(np.float64), labels)

    def test_logits_that_are_not_finite_have_none(self) -> None:
        logits = LOGITS.numpy().copy()
        logits[2, 0, 0] = np.nan
        assert fit_temperatures(logits, LABELS.numpy(), (0, 1)) is None

    def test_another_window_leaves_them_behind(self) -> None:
        fitted = Readouts(window=(0, 1), temperatures=Temperatures(window=(2.0, 3.0), last=4.0))
        assert fitted.with_window((0, 1)) == fitted
        assert fitted.with_window((0, 2)) == Readouts(window=(0, 2))


@pytest.mark.parametrize(("layers", "classes"), [(17, 10), (17, 200), (1, 2), (100, 10**6)])
def test_the_sample_is_bounded(layers: int, classes: int) -> None:
    size = sample_size(layers, classes)
    assert size == 1 or 4 * layers * classes * size <= MAX_SAMPLE_BYTES
    assert 4 * layers * classes * (size + 1) > MAX_SAMPLE_BYTES
