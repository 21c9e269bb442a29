"""The static table of kernels: lookups in rows of the test's own, and the rows that ship."""

from dataclasses import replace
from itertools import permutations

import pytest
import torch

from rayff.config.kernels import Kernels, parse_kernels
from rayff.kernels import table
from rayff.kernels.convolution import can_compute
from rayff.kernels.device_class import CPU_CLASSES
from rayff.kernels.table import Row, read_table, table_kernels
from rayff.models.architecture import Architecture, LayerSpec
from tests.helpers.layers import SHAPES

FP32, BF16 = torch.float32, torch.bfloat16


def rows(**entries: str) -> tuple[Row, ...]:
    """Read rows such as n128_k3_s1_i100_o100_h32="conv/unfold"."""
    found = []
    for name, kernels in entries.items():
        images, *shape = (int(part[1:]) for part in name.split("_"))
        found.append((images, tuple(shape), parse_kernels(kernels)[0]))
    return tuple(found)


def layer(
    kernel: int = 3, stride: int = 1, channels: int = 100, size: int = 32, *, pool: bool = False
) -> LayerSpec:
    return replace(
        SHAPES["100-100 k3 s1 32"],
        kernel_size=kernel,
        stride=stride,
        in_channels=channels,
        out_channels=channels,
        in_size=size,
        pool=pool,
    )


ROWS = rows(
    n128_k3_s1_i100_o100_h32="winograd",
    n128_k3_s1_i400_o400_h8="conv/winograd",
    n16_k3_s1_i100_o100_h32="unfold",
    n128_k5_s1_i100_o100_h32="conv/unfold",
    n128_k3_s2_i200_o200_h32="amx/unfold",
    n128_k3_s2_i400_o400_h16="unfold/conv",
)


def choice(
    spec: LayerSpec, images: int, measured: tuple[Row, ...] = ROWS, dtype: torch.dtype = FP32
) -> str:
    """Return the choice for one layer from rows of the class cpu-amx."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(table, "_rows", lambda *key: measured if key[0] == "cpu-amx" else ())
        network = Architecture(name="one", num_classes=10, layers=(spec,))
        return str(table_kernels(network, images, "cpu-amx", dtype)[0])


@pytest.mark.parametrize(
    ("spec", "images", "expected"),
    [
        (layer(), 128, "winograd"),  # its own row
        (layer(), 16, "unfold"),
        (layer(), 100, "winograd"),  # the nearer batch size, by ratio
        (layer(), 20, "unfold"),
        (layer(channels=300, size=8), 128, "conv/winograd"),
        (layer(channels=110, size=30), 128, "winograd"),
        (layer(size=64, pool=True), 128, "winograd"),  # the convolution's input is pooled
        (layer(kernel=5, channels=400, size=8), 16, "conv/unfold"),  # the only row of its kernel
    ],
    ids=str,
)
def test_a_layer_has_the_row_of_the_nearest_shape(spec: LayerSpec, images: int, expected: str):
    assert choice(spec, images) == expected
    assert all(choice(spec, images, order) == expected for order in permutations(ROWS, len(ROWS)))


@pytest.mark.parametrize("spec", [layer(kernel=7), layer(kernel=5, stride=2), layer(kernel=1)])
def test_another_kernel_size_or_stride_is_no_neighbour(spec: LayerSpec):
    assert choice(spec, 128) == "conv"


def test_a_backend_that_cannot_compute_the_layer_is_passed_over():
    strided = layer(stride=2, channels=200)
    assert choice(strided, 128, dtype=BF16) == "amx/unfold"
    assert choice(strided, 128, dtype=FP32) == "unfold/conv"
    odd = layer(size=31)  # no whole tiles for winograd
    assert choice(odd, 128) == "unfold"
    assert choice(odd, 128, ROWS[:2]) == "conv"


@pytest.mark.parametrize("device_class", ["cpu-avx1024", "mps"])
def test_a_class_without_rows_uses_torchs_convolution(device_class: str):
    network = Architecture(name="one", num_classes=10, layers=(layer(),))
    assert table_kernels(network, 128, device_class, FP32) == (Kernels(),)


def test_the_rows_that_ship_can_be_computed_where_they_count():
    classes = read_table(table.PATH)
    assert classes.keys() <= {*CPU_CLASSES, "cuda"}
    for device_class, entry in classes.items():
        assert entry.keys() >= {"machine", "date", "torch", "threads"}
        formats = {name for name, value in entry.items() if isinstance(value, list)}
        assert formats <= {"float32", "bfloat16"}
        for name in formats:
            dtype = getattr(torch, name)
            for images, (kernel, stride, entering, leaving, size), own in table._rows(
                device_class, name
            ):
                assert images >= 1
                spec = replace(layer(kernel, stride, entering, size), out_channels=leaving)
                assert all(can_compute(b, spec, device_class, dtype) for b in own.backends)
