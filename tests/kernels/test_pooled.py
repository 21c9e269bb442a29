"""The kernels of pooled losses against plain torch in float64."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayff.kernels import native
from rayff.kernels.dropout_bits import drawn_bytes
from rayff.kernels.pooled import Pooled, gradient, pool
from rayff.learning.generators import Share, dropout_state
from tests.helpers.layers import CPU, DEVICES, relative

DROPPED = 51


@dataclass(frozen=True)
class Case:
    images: int
    channels: int
    groups: int
    cells: int
    side: int
    dropout: bool
    squares: bool

    def y(self, dtype: torch.dtype, device: torch.device = CPU, seed: int = 0) -> Tensor:
        shape = (self.images, self.channels, self.side, self.side)
        y = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return y.to(device, dtype).contiguous(memory_format=torch.channels_last)

    def state(self, device: torch.device = CPU) -> Tensor | None:
        if not self.dropout:
            return None
        share = Share(step=3, batch_size=self.images)
        elements = self.channels * self.side**2
        return dropout_state(5, 1, share, elements, device).to(device)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    groups, cells = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 3, 4]))
    return Case(
        images=draw(st.integers(1, 3)),
        channels=groups * draw(st.integers(2, 20)),  # group norm needs two elements
        groups=groups,
        cells=cells,
        side=cells * draw(st.integers(1, 5)),
        dropout=draw(st.booleans()),
        squares=draw(st.booleans()),
    )


def expected(case: Case, y: Tensor, state: Tensor | None) -> tuple[Tensor, ...]:
    """Return h, features and both moments in float64, each as autograd would give it."""
    h = F.relu(y.double())
    if state is not None:
        kept = (drawn_bytes(state, y.shape) >= DROPPED).permute(0, 3, 1, 2)
        h = h * kept * (256 / (256 - DROPPED))
    side = case.side // case.cells
    features = F.group_norm(h, case.groups)
    return h, features, F.avg_pool2d(h, side), F.avg_pool2d(h.square(), side)


def run(case: Case, y: Tensor, state: Tensor | None) -> Pooled:
    return pool(
        y.clone(memory_format=torch.preserve_format),
        case.groups,
        case.cells,
        squares=case.squares,
        dropout_state=state,
        dropped=DROPPED,
    )


def assert_as_in_float64(case: Case, dtype: torch.dtype, device: torch.device, within: float):
    y, state = case.y(dtype, device), case.state(device)
    _, features, mean, square = expected(case, y, state)
    found = run(case, y, state)
    assert found.features.dtype == dtype
    assert found.mean.shape == (case.images, case.channels, case.cells, case.cells)
    assert (found.square is None) is not case.squares
    torch.testing.assert_close(found.mean.double(), mean, rtol=1e-5, atol=1e-6)
    if found.square is not None:
        torch.testing.assert_close(found.square.double(), square, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.features.double(), features, rtol=within, atol=within)

    generator = torch.Generator().manual_seed(1)
    at_mean = torch.randn(mean.shape, generator=generator).to(device)
    at_square = torch.randn(mean.shape, generator=generator).to(device) if case.squares else None
    leaf = y.double().requires_grad_()
    _, _, mean, square = expected(case, leaf, state)
    total = (mean * at_mean).sum()
    if at_square is not None:
        total = total + (square * at_square).sum()
    (wanted,) = torch.autograd.grad(total, leaf)
    at_y = gradient(found, at_mean, at_square)
    assert at_y.dtype == dtype
    assert relative(at_y, wanted) < within


@pytest.mark.parametrize("device", DEVICES)
@settings(deadline=None, max_examples=150)
@given(case=cases())
def test_any_shape_in_float32(device: torch.device, case: Case):
    assert_as_in_float64(case, torch.float32, device, within=2e-4)


@settings(deadline=None, max_examples=60)
@given(case=cases())
def test_any_shape_in_bfloat16(case: Case):
    assert_as_in_float64(case, torch.bfloat16, CPU, within=1e-2)


LARGE = Case(images=2, channels=100, groups=10, cells=4, side=32, dropout=True, squares=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_of_the_paper_with_and_without_compiled_kernels(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    assert_as_in_float64(LARGE, dtype, CPU, within=1e-2 if dtype == torch.bfloat16 else 1e-5)
    compiled = run(LARGE, LARGE.y(dtype), LARGE.state())
    monkeypatch.setattr(native, "missing", lambda: "no compiler")
    assert_as_in_float64(LARGE, dtype, CPU, within=1e-2 if dtype == torch.bfloat16 else 1e-5)
    plain = run(LARGE, LARGE.y(dtype), LARGE.state())
    assert torch.equal(compiled.y, plain.y)
    assert relative(compiled.mean, plain.mean) < 1e-6


def test_channels_that_hardly_vary_keep_their_digits():
    y = 1000 + torch.rand(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    case = Case(1, 4, 2, 1, 8, False, False)
    found = run(case, y, None)
    assert relative(found.features, F.group_norm(y.double(), 2)) < 1e-3


def test_the_bits_do_not_depend_on_the_number_of_threads():
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found = run(LARGE, LARGE.y(torch.float32), LARGE.state())
        slope = torch.ones_like(found.mean)
        results.append((found.features, found.mean, found.square, gradient(found, slope, slope)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_reach_the_moments(bad: float):
    y = LARGE.y(torch.float32)
    y[1, 3, 5, 5] = bad
    found = run(LARGE, y, LARGE.state())
    assert not found.mean[1, 3, 0, 0].isfinite()
    assert found.mean[0].isfinite().all()
