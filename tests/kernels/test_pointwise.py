"""The compiled pointwise pass against the one in torch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rayff.kernels import native
from rayff.kernels import pointwise as module
from rayff.kernels.dropout_bits import drawn_bytes
from rayff.kernels.pointwise import pointwise
from rayff.learning.generators import Share, dropout_state
from tests.helpers.layers import CPU, relative


def state_of(y: Tensor, first: int = 0, step: int = 3) -> Tensor:
    share = Share(step=step, batch_size=first + len(y), first=first)
    return dropout_state(1, 2, share, y[0].numel(), CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("channels", [10, 100, 130])
def test_it_computes_what_torch_does(
    dtype: torch.dtype, classes: int, channels: int, monkeypatch: pytest.MonkeyPatch
):
    y = torch.randn(3, channels, 5, 5).to(dtype).to(memory_format=torch.channels_last)
    labels = torch.tensor([1, 0, 1])
    for rest in ((), (state_of(y), 51, labels, 4), (None, 0, labels, 3)):
        found = pointwise(y.clone(memory_format=torch.channels_last), classes, *rest)
        with monkeypatch.context() as without:
            without.setattr(native, "missing", lambda: "no compiler")
            expected = pointwise(y, classes, *rest)
        within = 1e-6 if dtype == torch.float32 else 1e-2
        assert relative(found.goodness, expected.goodness) < 1e-6
        assert relative(found.features, expected.features) < within
        assert (found.gradient is None) == (expected.gradient is None) == (not rest)
        if found.gradient is not None:
            assert relative(found.losses, expected.losses) < 1e-6
            assert relative(found.gradient, expected.gradient) < within
            assert torch.equal(found.gradient == 0, expected.gradient == 0)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(1, 6)),
    first=st.integers(0, 3),
    step=st.integers(0, 2**31),
)
def test_it_drops_the_elements_whose_bytes_are_below(
    shape: tuple[int, int, int], first: int, step: int
):
    images, half, size = shape
    y = torch.randn(images, 2 * half, size, size).to(memory_format=torch.channels_last)
    y = y.abs() + 1  # so that only dropped elements have no gradient
    state = state_of(y, first, step)
    labels = torch.zeros(images, dtype=torch.int64)
    exact = y.permute(0, 2, 3, 1).double()
    features, goodness, gradient, _ = module._torch(exact, 2, state, 100, labels, 4)
    found = pointwise(y, 2, state, 100, labels, 4)
    kept = drawn_bytes(state, y.shape) >= 100
    assert torch.equal(found.gradient.permute(0, 2, 3, 1) != 0, kept)
    assert relative(found.goodness, goodness) < 1e-6
    assert relative(found.gradient.permute(0, 2, 3, 1), gradient) < 1e-6
    # groups of two nearly equal elements amplify float32's rounding
    assert relative(found.features.permute(0, 2, 3, 1), features) < 1e-3
