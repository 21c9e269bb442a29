"""Weights and dropout bytes as functions of seed, layer and step."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rayff.kernels.dropout_bits import drawn_bytes
from rayff.learning.generators import Share, dropout_state, head_seed, weight_generator
from tests.helpers.layers import CPU

COUNT = 4096


def drawn(*, seed: int = 0, layer: int = 0, step: int = 0, size: int = COUNT) -> Tensor:
    """Return the dropout bytes of one image."""
    state = dropout_state(seed, layer, Share(step=step, batch_size=1), size, CPU)
    return drawn_bytes(state, torch.Size((1, size, 1, 1))).flatten()


@given(
    key=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 200), st.integers(0, 2**40)),
    other=st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 200), st.integers(0, 2**40)),
)
def test_bytes_follow_from_seed_layer_and_step_alone(
    key: tuple[int, int, int], other: tuple[int, int, int]
):
    def of(seed: int, layer: int, step: int) -> list[int]:
        return drawn(seed=seed, layer=layer, step=step, size=32).tolist()

    first = of(*key)
    between = of(*other)
    torch.rand(3)
    assert of(*key) == first
    assert (between == first) == (key == other)


@pytest.mark.parametrize(
    "changed", [{"seed": 1}, {"layer": 1}, {"step": 1}, {"seed": 2**63}, {"step": 2**33}]
)
def test_another_seed_layer_or_step_gives_independent_bytes(changed: dict[str, int]):
    same = ((drawn() < 128) == (drawn(**changed) < 128)).double().mean().item()
    assert same == pytest.approx(0.5, abs=0.05)  # 4096 coins: six deviations are 0.047


def test_seed_layer_and_step_are_not_interchangeable():
    assert not torch.equal(drawn(layer=1, step=2), drawn(layer=2, step=1))
    assert not torch.equal(drawn(seed=1, layer=2), drawn(seed=2, layer=1))


def test_torchs_global_generator_is_neither_read_nor_advanced():
    torch.manual_seed(5)
    untouched = torch.rand(4)
    torch.manual_seed(5)
    first = drawn()
    weight_generator(0, 0)
    assert torch.equal(torch.rand(4), untouched)
    assert torch.equal(drawn(), first)


def test_every_byte_is_drawn_equally_often():
    often = torch.bincount(drawn(size=256 * 64).int(), minlength=256)
    # 256 Poisson counts around 64: chi-square of 255 degrees, deviation 22.6
    assert ((often - 64) ** 2 / 64).sum().item() == pytest.approx(255, abs=120)
    assert often.min() > 0


def test_neighbours_within_a_word_are_independent():
    below = (drawn(size=80_000) < 128).reshape(-1, 8).double()
    correlation = torch.corrcoef(below.T) - torch.eye(8)
    assert correlation.abs().max() < 0.06  # 10,000 words: six deviations


@given(size=st.integers(1, 70))
def test_any_number_of_elements_is_a_beginning_of_the_same_bytes(size: int):
    assert drawn(size=size).tolist() == drawn(size=80)[:size].tolist()


@given(batch=st.integers(1, 9), bounds=st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted))
def test_a_share_has_the_bytes_that_its_images_have_in_the_batch(batch: int, bounds: list[int]):
    first, end = (min(bound, batch) for bound in bounds)

    def of(images: int, first: int) -> Tensor:
        state = dropout_state(0, 0, Share(step=2, batch_size=batch, first=first), 12, CPU)
        return drawn_bytes(state, torch.Size((images, 3, 2, 2)))

    assert torch.equal(of(end - first, first), of(batch, 0)[first:end])


def test_bytes_have_the_order_of_channels_last_memory():
    state = dropout_state(0, 0, Share(step=0, batch_size=2), 60, CPU)
    found = drawn_bytes(state, torch.Size((2, 3, 5, 4)))
    assert found.shape == (2, 5, 4, 3)
    assert torch.equal(found.flatten(), drawn(size=120))


def test_the_words_are_numpys():
    """Other bytes would let no older run resume with the same bits."""
    state = dropout_state(1, 2, Share(step=5, batch_size=3, first=1), 15, CPU)
    found = drawn_bytes(state, torch.Size((2, 3, 5, 1)))
    key = np.random.SeedSequence(1, spawn_key=(2, 1, 5))
    words = np.random.PCG64DXSM(key).random_raw(6)
    assert found.flatten().tolist() == list(words.tobytes()[15:45])


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed, layer: torch.rand(4, generator=weight_generator(seed, layer)).tolist(),
        head_seed,
    ],
)
def test_weights_and_heads_have_generators_of_their_layer(draw):
    first = draw(0, 0)
    assert draw(0, 0) == first
    assert draw(0, 1) != first
    assert draw(1, 0) != first
