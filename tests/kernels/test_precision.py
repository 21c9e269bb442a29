import pytest
import torch

from rayff.kernels.precision import default_precision

CHECKS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


@pytest.mark.parametrize(
    ("amx", "avx512", "expected"),
    [
        (False, False, "fp32"),
        (True, False, "bf16"),
        (False, True, "bf16"),
        (None, None, "fp32"),
    ],
)
def test_a_cpu_with_units_for_bfloat16_uses_it(
    amx: bool | None, avx512: bool | None, expected: str, monkeypatch: pytest.MonkeyPatch
):
    for name, there in zip(CHECKS, (amx, avx512), strict=True):
        if there is None:  # a version of torch without the function
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda there=there: there, raising=False)
    assert default_precision(torch.device("cpu")) == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_with_units_for_bfloat16_uses_it(
    supported: bool, expected: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert default_precision(torch.device("cuda")) == expected
