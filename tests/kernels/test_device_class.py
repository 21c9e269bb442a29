from typing import Any

import pytest
import torch

from rayff.kernels import amx, device_class, native
from rayff.kernels.device_class import least_able


@pytest.mark.parametrize(
    ("compiler", "tile_units", "bf16", "capability", "expected"),
    [
        (False, True, True, "AVX512", "cpu-torch"),
        (True, True, True, "AVX512", "cpu-amx"),
        (True, False, True, "AVX512", "cpu-avx512-bf16"),
        (True, False, False, "AVX512", "cpu-avx512"),
        (True, False, False, "AVX2", "cpu"),
        (True, False, True, "AVX2", "cpu"),  # emulated: torch is kept from AVX-512
        (True, False, False, "DEFAULT", "cpu"),
    ],
)
def test_a_cpu_has_the_class_of_its_best_instructions(
    *, compiler: bool, tile_units: bool, bf16: bool, capability: str, expected: str,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    monkeypatch.setattr(native, "missing", lambda: None if compiler else "no compiler")
    monkeypatch.setattr(amx, "missing", lambda: None if tile_units else "no tile units")
    monkeypatch.setattr(device_class, "has_bf16_units", lambda: bf16)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert device_class.device_class(torch.device("cpu")) == expected


def test_a_gpu_has_a_class_of_its_own():
    assert device_class.device_class(torch.device("cuda")) == "cuda"


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["cpu-amx"], "cpu-amx"),
        (["cpu-amx", "cpu-avx512", "cpu-avx512-bf16"], "cpu-avx512"),
        (["cpu", "cpu-torch", "cpu-amx"], "cpu-torch"),
        (["cpu-avx512", "cpu"], "cpu"),
        (["cuda", "cuda"], "cuda"),
        (["cuda", "cpu-amx", "cpu"], "cpu"),
    ],
)
def test_the_least_able_class_has_the_fewest_instructions(classes: Any, expected: str):
    assert least_able(classes) == expected
    assert least_able(classes[::-1]) == expected
