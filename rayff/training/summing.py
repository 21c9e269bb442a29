"""How the replicas of a stage add up their gradients; a stage does not know how it is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Summing(Protocol):
    """Adds up gradients over all replicas of a stage."""

    def start(self, weight: Tensor) -> Callable[[], None]:
        """Begin to put the sum in the place of a weight's gradient; what is returned waits for it.

        All replicas start with the weights of the same layers in the same order, and end with the
        same bits.
        """
        ...
