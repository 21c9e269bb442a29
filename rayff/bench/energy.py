"""The energy that the processor or GPU has used, where the machine tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

RAPL = Path("/sys/class/powercap")
_PACKAGES = "intel-rapl:[0-9]"
"""Also of AMD's processors; their parts, such as intel-rapl:0:1, are counted in them."""


@dataclass(frozen=True)
class Counter:
    """A count of joules that only grows, but for its beginning again."""

    read: Callable[[], float]
    begins_again_at: float = math.inf


class Energy:
    """The energy of a device: of a GPU alone, or of all processors of the machine.

    Args:
        device: where the work is done.

    Attributes:
        missing: why there is none, a clause; None where there is.
    """

    def __init__(self, device: torch.device) -> None:
        self.counters: list[Counter] = []
        self.missing: str | None = None
        try:
            self.counters = nvml(device) if device.type == "cuda" else rapl(RAPL)
            self.read()
        except OSError as error:
            self.missing = str(error)

    def read(self) -> list[float]:
        """Return the counts of now."""
        return [counter.read() for counter in self.counters]

    def since(self, before: list[float]) -> float | None:
        """Return the joules used since some counts; None where the machine does not tell."""
        if not self.counters or self.missing:
            return None
        pairs = zip(self.counters, before, strict=True)
        return sum((counter.read() - count) % counter.begins_again_at for counter, count in pairs)


def rapl(folder: Path) -> list[Counter]:
    """Return the counters of all processor packages.

    Raises:
        OSError: there are none, or only root may read them.
    """
    packages = sorted(folder.glob(_PACKAGES))
    if not packages:
        raise OSError(f"the kernel has no RAPL counters ({folder}/intel-rapl:*)")
    return [
        Counter(
            lambda file=each / "energy_uj": int(file.read_text()) / 1e6,  # type: ignore[misc]
            int((each / "max_energy_range_uj").read_text()) / 1e6,
        )
        for each in packages
    ]


def nvml(device: torch.device) -> list[Counter]:
    """Return the counter of a GPU.

    Raises:
        OSError: nvidia-ml-py is not installed, or the GPU does not count.
    """
    try:
        import pynvml
    except ImportError:
        raise OSError("NVML is read with the package nvidia-ml-py: install it") from None
    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        gpu = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except pynvml.NVMLError as error:
        raise OSError(f"NVML: {error}") from error
    return [Counter(lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000)]
