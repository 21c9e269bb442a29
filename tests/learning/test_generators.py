import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayff.learning.generators import DropoutGenerator, Share, drawn_bytes, weight_generator


def mask(
    *, dropped: int = 51, seed: int = 0, layer: int = 0, step: int = 0, size: int = 4096
) -> torch.Tensor:
    share = Share(step=step, batch_size=1)
    stream = DropoutGenerator(seed=seed, layer_index=layer, share=share)
    return stream.keep_mask(torch.empty(1, size, 1, 1), dropped).flatten()


@given(
    key=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 200), st.integers(0, 2**40)),
    other=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 200), st.integers(0, 2**40)),
)
def test_the_bits_follow_from_seed_layer_and_step_alone(
    key: tuple[int, int, int], other: tuple[int, int, int]
):
    def bits(seed: int, layer: int, step: int) -> list[bool]:
        return mask(dropped=128, seed=seed, layer=layer, step=step, size=256).tolist()

    first = bits(*key)
    between = bits(*other)
    torch.rand(3)
    assert bits(*key) == first
    assert (between == first) == (key == other)


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"layer": 1}, {"step": 1}, {"seed": 2**63}, {"step": 2**33}]
)
def test_another_seed_layer_or_step_gives_other_bits(changed: dict[str, int]):
    same = (mask(dropped=128) == mask(dropped=128, **changed)).double().mean().item()
    assert same == pytest.approx(0.5, abs=0.05)  # 4096 coins: six deviations are 0.047


def test_layer_and_step_do_not_stand_in_for_each_other():
    assert not torch.equal(mask(layer=1, step=2), mask(layer=2, step=1))
    assert not torch.equal(mask(seed=1, layer=2), mask(seed=2, layer=1))


def test_the_global_stream_is_neither_read_nor_moved():
    torch.manual_seed(5)
    untouched = torch.rand(4)
    torch.manual_seed(5)
    first = mask()
    weight_generator(0, 0)
    assert torch.equal(torch.rand(4), untouched)
    torch.manual_seed(6)
    assert torch.equal(mask(), first)


@pytest.mark.parametrize("dropped", [1, 51, 128, 255])
def test_the_share_that_is_dropped_is_the_share_that_was_asked_for(dropped: int):
    count, p = 200_000, dropped / 256
    lost = count - int(mask(dropped=dropped, size=count).sum())
    assert abs(lost - count * p) < 5 * math.sqrt(count * p * (1 - p))


def test_nothing_is_dropped_where_nothing_is_to_be():
    assert mask(dropped=0).all()


def test_every_byte_from_0_to_255_decides_and_equally_often():
    # an element is lost as soon as `dropped` passes its byte, so the masks give the bytes back
    count = 256 * 64
    byte = np.zeros(count, dtype=int)
    for dropped in range(1, 256):
        byte += mask(dropped=dropped, size=count).numpy()
    often = np.bincount(byte, minlength=256)
    assert len(often) == 256
    # 256 Poisson counts around 64: chi-square of 255 degrees, deviation 22.6
    assert ((often - 64) ** 2 / 64).sum() == pytest.approx(255, abs=120)
    assert often[0] > 0
    assert often[255] > 0


def test_masks_of_more_dropout_lie_within_masks_of_less():
    kept = [mask(dropped=dropped) for dropped in (10, 51, 52, 200)]
    for more, less in zip(kept[1:], kept, strict=False):
        assert not (more & ~less).any()


@given(size=st.integers(1, 70))
def test_any_number_of_elements_is_served_from_the_same_stream(size: int):
    assert mask(dropped=128, size=size).tolist() == mask(dropped=128, size=80)[:size].tolist()


@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (2, 2, 4, 4), (9, 1, 1, 1)])
def test_the_mask_has_the_shape_of_what_it_masks(shape: tuple[int, ...]):
    share = Share(step=0, batch_size=shape[0])
    stream = DropoutGenerator(seed=0, layer_index=0, share=share)
    kept = stream.keep_mask(torch.empty(shape), 51)
    assert kept.shape == shape
    assert kept.dtype == torch.bool


@given(batch=st.integers(1, 9), bounds=st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted))
def test_a_share_has_the_bits_that_its_images_have_in_the_batch(batch: int, bounds: list[int]):
    first, end = (min(bound, batch) for bound in bounds)

    def kept(images: int, first: int) -> torch.Tensor:
        share = Share(step=2, batch_size=batch, first=first)
        stream = DropoutGenerator(seed=0, layer_index=0, share=share)
        return stream.keep_mask(torch.empty(images, 3, 2, 2), 128)

    assert torch.equal(kept(end - first, first), kept(batch, 0)[first:end])


def test_bytes_lie_as_channels_last_memory_does():
    like = torch.empty(2, 3, 5, 4)
    share = Share(step=0, batch_size=2)
    kept = DropoutGenerator(seed=0, layer_index=0, share=share).keep_mask(like, 128)
    assert kept.permute(0, 2, 3, 1).flatten().tolist() == mask(dropped=128, size=120).tolist()


def test_the_words_are_numpys():
    """A changed stream would let no older run resume with the same bits."""
    share = Share(step=5, batch_size=3, first=1)
    state = DropoutGenerator(seed=1, layer_index=2, share=share).state(15, torch.device("cpu"))
    drawn = drawn_bytes(state, torch.Size((2, 3, 5, 1)))
    key = np.random.SeedSequence(1, spawn_key=(2, 1, 5))
    words = np.random.PCG64DXSM(key).random_raw(6)
    assert drawn.flatten().tolist() == list(words.tobytes()[15:45])


def test_neighbours_within_a_word_are_independent():
    kept = mask(dropped=128, size=80_000).reshape(-1, 8).double()
    correlation = torch.corrcoef(kept.T) - torch.eye(8)
    assert correlation.abs().max() < 0.06  # 10,000 words: six deviations


def test_the_generator_of_the_weights_is_its_layers_own():
    def draw(seed: int, layer: int) -> list[float]:
        return torch.rand(4, generator=weight_generator(seed, layer)).tolist()

    first = draw(0, 0)
    assert draw(0, 0) == first
    assert draw(0, 1) != first
    assert draw(1, 0) != first
