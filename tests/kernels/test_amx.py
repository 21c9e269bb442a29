"""Convolutions by the tile units, against float64: with small whole numbers nothing is rounded."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayff.config.errors import UserError
from rayff.config.kernels import Kernels
from rayff.kernels import amx
from rayff.kernels.convolution import Convolution, backends
from rayff.models.architecture import LayerSpec
from rayff.models.zoo import architecture

CPU = torch.device("cpu")
SPEC = architecture("tinycnn", num_classes=10, image_channels=3).layers[0]
WITH_AMX = pytest.mark.skipif(amx.missing() is not None, reason="no AMX here")


def layer(in_channels: int, out_channels: int, size: int, kernel: int, stride: int) -> LayerSpec:
    return replace(
        SPEC,
        in_channels=in_channels,
        out_channels=out_channels,
        in_size=size,
        kernel_size=kernel,
        stride=stride,
        pool=False,
    )


def whole_numbers(*shape: int, seed: int) -> Tensor:
    """Whole numbers from -3 to 3, channels last: sums of their products are exact in float32."""
    drawn = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(torch.bfloat16).to(memory_format=torch.channels_last)


def compute(spec: LayerSpec, images: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Return x, weight and slopes, and the output and gradient that the tiles find from them."""
    kernel = spec.kernel_size
    x = whole_numbers(images, spec.in_channels, spec.in_size, spec.in_size, seed=seed)
    weight = whole_numbers(spec.out_channels, spec.in_channels, kernel, kernel, seed=seed + 1)
    convolution = Convolution(spec, Kernels("amx", "amx"), x, weight)
    y = convolution.forward().clone()
    slopes = whole_numbers(*y.shape, seed=seed + 2)
    return x, weight, slopes, y, convolution.weight_gradient(slopes)


@WITH_AMX
class TestWithAmx:
    @settings(max_examples=60, deadline=None)
    @given(
        images=st.integers(1, 9),
        in_channels=st.integers(1, 70),
        out_channels=st.integers(1, 70),
        size=st.integers(1, 18),
        kernel=st.sampled_from([1, 3, 5, 7]),
        stride=st.integers(1, 3),
        seed=st.integers(0, 99),
    )
    def test_any_shape_is_exact(self, images: int, seed: int, size: int, **shape: int) -> None:
        spec = layer(size=size, **shape)
        x, weight, slopes, y, gradient = compute(spec, images, seed)
        exact = weight.double().requires_grad_()
        expected = F.conv2d(x.double(), exact, None, spec.stride, spec.kernel_size // 2)
        expected.backward(slopes.double())
        assert torch.equal(y, expected.to(torch.bfloat16))
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient.double(), exact.grad)

    @pytest.mark.parametrize(
        ("shape", "images"),
        [
            ((40, 100, 32, 3, 1), 33),  # several slices of pixels, the last one short
            ((200, 60, 16, 3, 2), 70),  # slices and groups of columns
            ((700, 40, 4, 3, 1), 20),  # one slice, and more columns than are packed at a time
        ],
        ids=str,
    )
    def test_large_sums_are_exact_and_the_same_for_any_number_of_threads(
        self, shape: Any, images: int
    ) -> None:
        spec, found = layer(*shape), []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x, weight, slopes, y, gradient = compute(spec, images)
            found.append((y, gradient))
        exact = weight.double().requires_grad_()
        expected = F.conv2d(x.double(), exact, None, spec.stride, spec.kernel_size // 2)
        expected.backward(slopes.double())
        for y, gradient in found:
            assert torch.equal(y, expected.to(torch.bfloat16))
            assert torch.equal(gradient.double(), exact.grad)

    def test_an_image_has_the_same_bits_in_any_batch(self) -> None:
        spec = layer(30, 50, 8, 3, 1)
        x = torch.randn(7, 30, 8, 8).to(torch.bfloat16, memory_format=torch.channels_last)
        weight = torch.randn(50, 30, 3, 3).to(torch.bfloat16, memory_format=torch.channels_last)
        whole = amx.convolve(x, weight, spec).clone()
        for image in range(7):
            alone = amx.convolve(x[image : image + 1], weight, spec)
            assert torch.equal(alone, whole[image : image + 1])

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_nan_and_infinity_propagate(self, bad: float) -> None:
        spec = layer(5, 7, 4, 3, 1)
        x, weight, slopes, *_ = compute(spec, 2)
        x[1, 3, 2, 2] = bad
        convolution = Convolution(spec, Kernels("amx", "amx"), x, weight)
        y = convolution.forward()
        assert y[0].isfinite().all()
        assert not y[1, :, 1:, 1:].isfinite().all()
        assert not convolution.weight_gradient(slopes).isfinite().all()

    def test_it_is_a_backend_of_bfloat16_alone(self) -> None:
        assert backends(SPEC, CPU, torch.bfloat16)[-1] == "amx"
        assert "amx" not in backends(SPEC, CPU, torch.float32)


class TestWithoutAmx:
    @pytest.fixture(autouse=True)
    def no_amx(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(amx, "missing", lambda: "the processor has none")

    def test_it_is_no_backend(self) -> None:
        assert "amx" not in backends(SPEC, CPU, torch.bfloat16)

    def test_a_run_with_it_is_refused(self) -> None:
        with pytest.raises(UserError) as refused:
            compute(SPEC, 1)
        assert str(refused.value) == (
            "--kernels: layer 0 cannot be computed with amx here (the processor has none); train "
            "where it can, or anew with other kernels"
        )
