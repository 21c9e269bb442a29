"""Memory that this process holds."""

from __future__ import annotations

import psutil
import torch


def held_bytes(device: torch.device) -> int:
    """Return the bytes held for a device: of a GPU those that torch has reserved, else all."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    resident: int = psutil.Process().memory_info().rss
    return resident
