import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayff.learning.readout import best_window, window_hits

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
