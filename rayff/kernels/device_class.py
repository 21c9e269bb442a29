"""Classes of devices that use the same kernels: by instruction set, not model or clock rate."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from rayff.kernels import amx, gpu, native

CPU_CLASSES = ("cpu-torch", "cpu", "cpu-avx512", "cpu-avx512-bf16", "cpu-amx")
"""From the least to the most able; cpu-torch has no compiled kernels."""


def device_class(device: torch.device) -> str:
    """Return the class of a device: one of CPU_CLASSES, or cuda."""
    if device.type != "cpu":
        return device.type
    if native.missing() is not None:
        return "cpu-torch"
    if amx.missing() is None:
        return "cpu-amx"
    if not has_avx512():
        return "cpu"
    return "cpu-avx512-bf16" if has_bf16_units() else "cpu-avx512"


def missing_kernels(device: torch.device) -> str | None:
    """Return why a device's compiled kernels cannot be used, in a clause; None where they can."""
    return native.missing() if device.type == "cpu" else gpu.missing()


def device_name(device: torch.device) -> str:
    """Return the name of a device's model."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def processor_name() -> str:
    """Return the name of the processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def has_avx512() -> bool:
    """Return whether torch uses AVX-512: ATEN_CPU_CAPABILITY=avx2 keeps it from that."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def has_bf16_units() -> bool:
    """Return whether the processor has AVX-512 instructions for bfloat16."""
    # a function that torch keeps to itself, and that older versions lack
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def least_able(classes: list[str]) -> str:
    """Return the class whose kernels all of these devices have."""
    cpus = [name for name in classes if name in CPU_CLASSES]
    return min(cpus, key=CPU_CLASSES.index) if cpus else classes[0]
