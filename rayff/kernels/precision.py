"""Number formats of convolutions and features, and the default of a device."""

from __future__ import annotations

import torch

from rayff.config.environment import set_torch_defaults
from rayff.config.train_config import Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def default_precision(device: torch.device) -> Precision:
    """Return "bf16" where the device has units for it, else "fp32".

    Where it has none bfloat16 works too, but many times slower.
    """
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # functions that torch keeps to itself, and that older versions lack
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        supported = any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return "bf16" if supported else "fp32"


def configure_torch(threads: int | None = None) -> None:
    """Set up torch in a process that computes: before its first large tensor.

    Args:
        threads: torch's threads; None leaves them.
    """
    set_torch_defaults()
    if threads is not None:
        torch.set_num_threads(threads)
    set_deterministic()


def set_deterministic() -> None:
    """Let a GPU give the same bits in every process, and sums of float32.

    By default cuDNN may add up in any order, and multiply float32 with the 10 bits of tf32; and
    cuBLAS may add up parts of a product of bfloat16 in bfloat16.
    """
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
