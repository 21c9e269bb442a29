"""How the replicas of a stage add up their gradients; a stage does not know how it is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor


class Summing(Protocol):
    """Adds up a tensor over all replicas of a stage."""

    def start(self, gradient: Tensor) -> Callable[[], None]:
        """Begin to put the sum in the gradient's place; what is returned waits for the end.

        All replicas start with the gradients of the same layers in the same order, and end with
        the same bits.
        """
        ...
