import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayff.data.order import batches, epoch_order, holdout

seeds = st.integers(0, 2**63)
epochs = st.integers(0, 10_000)


@given(num_images=st.integers(0, 300), seed=seeds, epoch=epochs, batch_size=st.integers(1, 400))
def test_the_batches_of_an_epoch_hold_every_image_exactly_once(
    num_images: int, seed: int, epoch: int, batch_size: int
):
    parts = batches(epoch_order(num_images, seed=seed, epoch=epoch), batch_size)
    assert sorted(index for part in parts for index in part.tolist()) == list(range(num_images))
    assert all(len(part) == batch_size for part in parts[:-1])
    assert all(1 <= len(part) <= batch_size for part in parts)


@given(seed=seeds, epoch=epochs, others=st.lists(st.tuples(seeds, epochs), max_size=3))
def test_the_order_depends_on_the_seed_and_the_epoch_alone(
    seed: int, epoch: int, others: list[tuple[int, int]]
):
    first = epoch_order(50, seed=seed, epoch=epoch)
    np.random.seed(1)  # the global stream must not matter
    orders = {other: epoch_order(50, seed=other[0], epoch=other[1]).tolist() for other in others}
    assert epoch_order(50, seed=seed, epoch=epoch).tolist() == first.tolist()
    # two equal orders of 50 images would be a chance of 1 in 10^64
    assert all(order != first.tolist() for key, order in orders.items() if key != (seed, epoch))


def test_the_order_of_an_epoch_is_the_same_on_every_machine_and_version():
    assert epoch_order(10, seed=0, epoch=0).tolist() == [6, 3, 8, 1, 4, 5, 9, 2, 7, 0]
    assert epoch_order(10, seed=0, epoch=1).tolist() == [1, 3, 8, 6, 2, 0, 7, 5, 4, 9]


def test_the_order_is_of_64_bit_indices():
    assert epoch_order(5, seed=0, epoch=0).dtype == np.int64


def test_the_last_smaller_batch_is_kept():
    parts = batches(np.array([4, 2, 0, 1, 3, 6, 5]), 3)
    assert [part.tolist() for part in parts] == [[4, 2, 0], [1, 3, 6], [5]]


def test_batches_that_come_out_even_have_no_empty_one_behind():
    assert [part.tolist() for part in batches(np.array([1, 0, 3, 2]), 2)] == [[1, 0], [3, 2]]


def test_a_batch_of_no_images_is_refused():
    with pytest.raises(ValueError, match="batch_size is 0"):
        batches(np.arange(3), 0)


@given(num_images=st.integers(2, 300), data=st.data())
def test_kept_and_held_out_images_share_the_whole_between_them(
    num_images: int, data: st.DataObject
):
    num_held_out = data.draw(st.integers(1, num_images - 1))
    kept, held_out = holdout(num_images, num_held_out)
    assert len(held_out) == num_held_out
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(num_images))
    assert kept.tolist() == sorted(kept.tolist())


def test_the_images_held_out_are_the_same_on_every_machine_and_version():
    assert holdout(20, 4)[1].tolist() == [0, 9, 11, 15]


def test_holding_out_every_image_is_refused():
    with pytest.raises(ValueError, match="cannot hold out 5 of 5 images"):
        holdout(5, 5)
