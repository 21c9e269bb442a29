import numpy as np
import pytest
from sklearn.datasets import load_digits

from rayff.data.digits import read_digits
from rayff.data.images import ImageFormat


@pytest.fixture(scope="module")
def splits():
    return read_digits(ImageFormat(1, 32))


def test_the_1797_images_are_split_into_1397_and_200_and_200(splits):
    assert [len(split) for split in splits] == [1397, 200, 200]


def test_the_splits_hold_each_class_in_proportion(splits):
    # between 174 and 183 of the 1,797 images are of one class
    train, valid, test = (np.bincount(split.labels, minlength=10) for split in splits)
    assert 135 <= train.min() <= train.max() <= 143
    assert 19 <= valid.min() <= valid.max() <= 21
    assert 19 <= test.min() <= test.max() <= 21


def test_the_splits_share_no_image_and_lose_none(splits):
    seen = [image.tobytes() for split in splits for image in split.images]
    assert len(seen) == 1797
    assert len(set(seen)) == len({image.tobytes() for image in load_digits().images})


def test_the_labels_stay_with_their_images(splits):
    # a class's mean over all splits is the mean over all images
    train, valid, test = splits
    for label in range(10):
        ours = np.concatenate([split.images[split.labels == label] for split in splits])
        theirs = load_digits().images[load_digits().target == label]
        assert len(ours) == len(theirs)
        assert abs(ours.mean() - theirs.mean() * 255 / 16) < 1


def test_the_images_are_grey_and_use_the_whole_range(splits):
    for split in splits:
        assert split.images.dtype == np.uint8
        assert split.images.shape[1:] == (1, 32, 32)
        assert (split.images.min(), split.images.max()) == (0, 255)


def test_the_splits_are_the_same_each_time(splits):
    for split, again in zip(splits, read_digits(ImageFormat(1, 32)), strict=True):
        np.testing.assert_array_equal(split.images, again.images)
        np.testing.assert_array_equal(split.labels, again.labels)
