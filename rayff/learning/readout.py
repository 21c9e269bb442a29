"""Signal integrating and pruning (SIP; DeeperForward, section 3.4): which layers classify.

Window legend: entry [first, last] of an (L, L) matrix is for the sum of layers first..last;
entries below the diagonal are zero.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def window_hits(goodness: Tensor, labels: Tensor) -> NDArray[np.int64]:
    """Count the images that each window classifies correctly.

    Args:
        goodness: of every layer, (L, B, C).
        labels: classes, (B,).

    Returns:
        (L, L) counts.
    """
    num_layers = len(goodness)
    hits = torch.zeros(num_layers, num_layers, dtype=torch.int64, device=goodness.device)
    for first in range(num_layers):
        summed = goodness[first:].cumsum(dim=0)
        hits[first, first:] = (summed.argmax(dim=2) == labels).sum(dim=1)
    return hits.cpu().numpy()


def best_window(hits: NDArray[np.int64]) -> tuple[int, int]:
    """Return (first, last) of the window with most hits; on a tie the shallowest.

    The shallowest is the one that ends first, and of those the one that starts first.
    """
    windows = ((first, last) for last in range(len(hits)) for first in range(last + 1))
    return max(windows, key=lambda window: hits[window])
