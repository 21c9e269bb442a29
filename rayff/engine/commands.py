"""Commands from the driver to the stages, and the reports that they return.

A stage carries out its commands in the order called, so the order of commands *is* the schedule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rayff.data.images import Split
from rayff.learning.chain import Activations

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Train:
    """Let every layer learn from each batch of the chunk, one after the other."""

    epoch: int
    step: int
    """Number of the chunk's first batch, counted from 0 over the whole run."""
    lrs: tuple[float, ...]
    """Learning rate of each batch."""
    batches: tuple[Indices, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Count the images that each window of layers classifies correctly."""

    epoch: int
    split: Split
    batches: tuple[Indices, ...]
    logits: tuple[Indices, ...] = ()
    """Positions in each batch, ascending, of the images whose logits of all layers the last stage
    returns too; nothing for none of any batch."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Copy the state of every layer as it is between two batches."""

    epoch: int
    batch: int
    """Batches of the epoch that the layers have seen."""
    final: bool = False
    """Nothing comes after it."""


Command = Train | Evaluate | Snapshot


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch on its way from one stage to the next."""

    activations: Activations
    labels: Tensor
    """(B,); no images at all where there are fewer of them than replicas."""
    logits: tuple[Tensor, ...] = ()
    """Of all layers so far, (B, C) each; filled by Evaluate alone."""

    def map(self, function: Callable[[Any], Any]) -> Batch:
        """Return the batch with a function applied to each tensor, in the order of `tensors`."""
        return Batch(
            activations=self.activations.map(function),
            labels=function(self.labels),
            logits=tuple(map(function, self.logits)),
        )

    @property
    def tensors(self) -> list[Any]:
        """All tensors of the batch."""
        features, shortcut = self.activations.features, self.activations.shortcut
        carried = [features] if shortcut is None else [features, shortcut]
        return [*carried, self.labels, *self.logits]


Chunk = list[Batch]
"""A few consecutive batches in one message: they share its cost and change no result."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """A stage's report of one command: small numbers, or the bytes of a snapshot."""

    started_s: float
    """Wall-clock time (seconds since the epoch) at which the stage began."""
    busy_s: float
    """Seconds from there to the end, without the wait for its input; of several replicas the mean,
    which includes the all-reduce of gradients."""
    idle_s: float = 0.0
    """Seconds from the end of the command before (or the set-up) to its start, by the stage's own
    clock: the wait for its input, and taking it in; of several replicas the mean."""
    waited_s: float = 0.0
    """Of these, seconds in which the first stage waited for images."""
    images: int = 0
    memory_bytes: int = 0
    """Held by the stage's process: of a GPU by torch, else its resident memory; of replicas the
    largest. 0 for a stage that shares the process of the first."""
    sent_bytes: int = 0
    """Of the tensors that went on to the next stage."""
    loss_sums: tuple[float, ...] = ()
    """Sum over the images of the loss of each layer of the stage (Train)."""
    hits: NDArray[np.int64] | None = None
    """Images that each window classifies correctly, (L, L) (Evaluate, last stage)."""
    logits: tuple[NDArray[np.float32], ...] = ()
    """Of all layers, (L, n, C), for the n images asked for of each batch (Evaluate with logits,
    last stage)."""
    labels: tuple[NDArray[np.int64], ...] = ()
    """Classes, (n,), of those images."""
    states: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    """The safetensors file of each layer of the stage, by global number (Snapshot, replica 0)."""
    digests: dict[int, str] = field(default_factory=dict)
    """sha256 of each layer's file, by global number (Snapshot, of each of several replicas)."""
