"""Which backends a device has for a layer; what they compute is tested with the analytic step."""

from dataclasses import replace

import pytest
import torch

from rayff.config.kernels import Kernels
from rayff.kernels import amx, native
from rayff.kernels.convolution import Convolution, backends, can_compute
from rayff.kernels.device_class import CPU_CLASSES
from tests.helpers.layers import CPU, SHAPES

THREE_BY_THREE = SHAPES["100-100 k3 s1 32"]
ONE_BY_ONE = replace(THREE_BY_THREE, kernel_size=1)


def test_a_gpu_unfolds_images_of_few_channels_in_float32():
    image, cuda = SHAPES["3-100 k5 s1 32"], torch.device("cuda")
    assert backends(image, cuda, torch.float32) == ("unfold",)
    assert backends(image, cuda, torch.bfloat16) == ("conv", "unfold")
    assert backends(THREE_BY_THREE, cuda, torch.float32) == ("conv", "unfold")


def test_a_1x1_kernel_is_a_matrix_product():
    assert backends(ONE_BY_ONE, CPU, torch.float32) == ("unfold",)
    x, weight = torch.randn(1, 100, 32, 32), torch.randn(ONE_BY_ONE.weight_shape)
    convolution = Convolution(ONE_BY_ONE, Kernels("conv", "conv"), x, weight)
    assert convolution.kernels == Kernels("unfold", "unfold")


@pytest.mark.parametrize("device_class", [*CPU_CLASSES, "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_device_classes_have_the_backends_of_their_instructions(
    device_class: str, dtype: torch.dtype
):
    def able(backend: str) -> bool:
        return can_compute(backend, THREE_BY_THREE, device_class, dtype)

    assert able("conv")
    assert able("unfold")
    assert able("winograd") == (device_class not in ("cpu-torch", "cuda"))
    assert able("amx") == (device_class == "cpu-amx" and dtype == torch.bfloat16)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "in_size", "pool", "fits"),
    [
        (3, 1, 8, False, True),
        (3, 2, 8, False, True),
        (5, 1, 8, True, True),
        (1, 1, 8, False, False),
        (5, 2, 8, False, False),
        (7, 1, 8, False, False),
        (3, 1, 7, False, False),  # tiles of two outputs a side
        (3, 2, 7, False, False),
        (3, 1, 6, True, False),
    ],
)
def test_winograd_needs_whole_tiles_and_small_kernels(
    kernel_size: int, stride: int, in_size: int, pool: bool, fits: bool
):
    spec = replace(
        THREE_BY_THREE, kernel_size=kernel_size, stride=stride, in_size=in_size, pool=pool
    )
    assert can_compute("winograd", spec, "cpu", torch.float32) == fits


def test_this_cpu_has_the_compiled_backends(monkeypatch: pytest.MonkeyPatch):
    assert native.missing() is None, "the tests need a C++ compiler"
    assert backends(THREE_BY_THREE, CPU, torch.float32) == ("conv", "unfold", "winograd")
    monkeypatch.setattr(amx, "missing", lambda: None)
    assert backends(THREE_BY_THREE, CPU, torch.bfloat16)[-1] == "amx"
