"""How the replicas of a stage add up their gradients; a stage does not know how it is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor


class AllReduce(Protocol):
    """Adds up gradients over all replicas of a stage."""

    def prepare(self, weights: Sequence[Tensor]) -> None:
        """Get ready to sum the gradients of these at each step; all replicas do so together."""
        ...

    def start(self, weight: Tensor) -> Callable[[], None]:
        """Begin to put the sum in the place of a weight's gradient; what is returned waits for it.

        All replicas start with the weights of the same layers in the same order, and end with the
        same bits. A sum is used up before the next one is waited for.
        """
        ...
