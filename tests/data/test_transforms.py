"""The built-in augmentations, whole batches against one image at a time in numpy."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rayff.data.augmentation import augment, parse_augmentations
from rayff.data.transforms import random_numbers
from tests.helpers.augmentations import REFERENCES, Images, by_image
from tests.helpers.layers import DEVICES


@st.composite
def batches(draw: st.DrawFn) -> tuple[Images, str]:
    """Return images, and augmentations with strengths up to the largest."""
    count, channels = draw(st.integers(1, 9)), draw(st.sampled_from([1, 3]))
    height, width = draw(st.integers(2, 12)), draw(st.integers(2, 12))
    side = min(height, width)
    kinds = {
        "crop": st.integers(1, side - 1),
        "translate": st.integers(1, side - 1),
        "cutout": st.integers(1, side),
    }
    names = draw(st.lists(st.sampled_from(sorted(REFERENCES)), min_size=1, max_size=5))
    entries = [f"{name}:{draw(kinds[name])}" if name in kinds else name for name in names]
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    images = generator.integers(0, 256, (count, channels, height, width), dtype=np.uint8)
    return images, ",".join(entries)


def augmented(
    images: Images, names: str, *, first: int = 0, seed: int = 3, step: int = 7
) -> Images:
    """Return what the package makes of consecutive images of a batch."""
    found = augment(
        torch.tensor(images), parse_augmentations(names), seed=seed, step=step, first=first
    )
    assert found.is_contiguous()
    return found.numpy()


@given(batch=batches(), seed=st.integers(0, 2**63), step=st.integers(0, 2**40))
@settings(deadline=None)
def test_a_batch_is_what_each_image_becomes_alone(
    batch: tuple[Images, str], seed: int, step: int
) -> None:
    images, names = batch
    expected = by_image(images, names, seed, step)
    assert np.array_equal(augmented(images, names, seed=seed, step=step), expected)


@given(batch=batches(), data=st.data())
@settings(deadline=None)
def test_any_part_of_a_batch_has_the_images_of_the_whole(
    batch: tuple[Images, str], data: st.DataObject
) -> None:
    images, names = batch
    first = data.draw(st.integers(0, len(images)))
    last = data.draw(st.integers(first, len(images)))
    part = augmented(images[first:last], names, first=first)
    assert np.array_equal(part, augmented(images, names)[first:last])


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_gives_the_same_images(device: torch.device) -> None:
    images = np.random.default_rng(0).integers(0, 256, (128, 3, 32, 32), dtype=np.uint8)
    names = "crop:4,flip,cutout:8,translate:2"
    there = torch.tensor(images, device=device)
    augmentations = parse_augmentations(names)
    results = [augment(there, augmentations, seed=3, step=step) for step in range(8)]
    for step, found in enumerate(results):
        assert found.device.type == device.type
        assert np.array_equal(found.cpu().numpy(), by_image(images, names, seed=3, step=step))


def test_an_image_does_not_depend_on_the_others() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 12, 12), dtype=np.uint8)
    names = "crop:4,flip,cutout:8,translate:2"
    before = augmented(images, names)
    images[[0, 1, 2, 4, 5, 6, 7]] = 9
    assert np.array_equal(augmented(images, names)[3], before[3])


def test_the_given_images_are_not_changed() -> None:
    images = torch.randint(256, (8, 3, 12, 12), dtype=torch.uint8)
    before = images.clone()
    for names in ("crop:4", "flip", "cutout:8", "translate:2", "flip,cutout"):
        augment(images, parse_augmentations(names), seed=0, step=0)
    assert torch.equal(images, before)


class TestTheNumbers:
    def test_are_the_same_in_every_version(self) -> None:
        """Of numpy, for one: its generators' raw bits are fixed, their distributions are not."""
        assert random_numbers(3, 7, 2, first=0, images=2).tolist() == [
            [13711636615504883748, 11903052967591457109],
            [8436805350416297715, 14767006526314542060],
        ]

    def test_differ_by_seed_step_position_and_place(self) -> None:
        found = [
            random_numbers(seed, step, 3, first=0, images=50).ravel()
            for seed in (0, 1)
            for step in (0, 1, 2**32)
        ]
        assert len(np.unique(np.concatenate(found))) == 6 * 150

    def test_of_a_longer_batch_begin_with_those_of_a_shorter_one(self) -> None:
        long = random_numbers(3, 7, 4, first=0, images=128)
        for images in (1, 15, 16, 17, 127):
            assert np.array_equal(random_numbers(3, 7, 4, first=0, images=images), long[:images])


class TestHowOften:
    """Against the distribution that the docs state, at a level of one in a million."""

    COUNT = 20_000

    def counts(self, names: str) -> Counter[bytes]:
        """Return how often each result occurs, of an image without two pixels alike."""
        image = np.arange(25, dtype=np.uint8).reshape(1, 1, 5, 5) + 1
        images = np.broadcast_to(image, (self.COUNT, 1, 5, 5))
        return Counter(each.tobytes() for each in augmented(images, names))

    @pytest.mark.parametrize(
        ("names", "kinds"),
        [("flip", 2), ("crop:1", 9), ("crop:2", 25), ("translate:2", 25), ("cutout:1", 25)],
    )
    def test_each_result_comes_as_often_as_any_other(self, names: str, kinds: int) -> None:
        counts = self.counts(names)
        assert len(counts) == kinds
        assert stats.chisquare(list(counts.values())).pvalue > 1e-6

    def test_two_in_a_list_are_independent(self) -> None:
        counts = self.counts("crop:1,flip")
        assert len(counts) == 18
        assert stats.chisquare(list(counts.values())).pvalue > 1e-6


class TestASquareThatIsCutOut:
    def test_reaches_over_an_edge_and_has_the_mean_colour_rounded_down(self) -> None:
        """Of side 2 and centre (0, 0): one pixel, in the corner."""
        image = np.array([[[[8, 0, 0], [0, 1, 0], [0, 0, 2]], [[9] * 3] * 3]], dtype=np.uint8)
        found = augmented(np.repeat(image, 300, axis=0), "cutout:2")
        corner = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 2]], [[9] * 3] * 3])
        assert sum(np.array_equal(each, corner) for each in found) in range(10, 70)
        assert {int(each[0, 0, 0]) for each in found} == {8, 1}
