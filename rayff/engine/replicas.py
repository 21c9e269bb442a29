"""Replicas of a stage: their shares of a batch, the pieces they exchange, their joint report.

    stage of 2          stage of 3, a batch of 12

    rows 0-5   --0-3--> rows 0-3
               \\-4-5-> rows 4-7
    rows 6-11  --6-7-/
               -8-11--> rows 8-11

Each replica processes one share of every batch, and sends each replica of the next stage the piece
of its rows that is in that one's share. The pairs depend on the numbers of replicas alone; a
piece's number of rows depends on the batch, and may be zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rayff.config.errors import RunError
from rayff.engine.commands import Batch, Chunk, Report


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One of the actors of a stage."""

    index: int = 0
    count: int = 1
    """Replicas of the stage."""

    def rows(self, batch_size: int) -> range:
        """Return the positions in a batch of its images."""
        first = batch_size * self.index // self.count
        return range(first, batch_size * (self.index + 1) // self.count)

    def receivers(self, count: int) -> range:
        """Return which of the `count` replicas of the next stage process some of its images.

        Those are the replicas whose share, as a fraction of a batch, overlaps its own.
        """
        return range(self.index * count // self.count, -(-(self.index + 1) * count // self.count))


def split(chunk: Chunk, sizes: Sequence[int], sender: Replica, receivers: int) -> list[Chunk]:
    """Return the piece of a chunk for each of the sender's receivers.

    Args:
        chunk: the sender's rows of each batch.
        sizes: images of each whole batch.
        sender: the replica that sends.
        receivers: replicas of the next stage.
    """
    if sender.count == receivers == 1:
        return [chunk]
    return [
        [
            _rows(batch, sender.rows(size), Replica(index=index, count=receivers).rows(size))
            for batch, size in zip(chunk, sizes, strict=True)
        ]
        for index in sender.receivers(receivers)
    ]


def _rows(batch: Batch, own: range, target: range) -> Batch:
    """Return those of a batch's rows, which are `own` of the whole one, that are in `target`."""
    first, end = max(own.start, target.start), min(own.stop, target.stop)
    some = slice(first - own.start, max(first, end) - own.start)
    return batch.map(lambda tensor: tensor[some])


def join(pieces: Sequence[Chunk]) -> Chunk:
    """Return the chunk whose pieces came from several senders, in their order."""
    if len(pieces) == 1:
        return pieces[0]
    return [_joined(batches) for batches in zip(*pieces, strict=True)]


def _joined(batches: Sequence[Batch]) -> Batch:
    some = [batch for batch in batches if len(batch.labels)] or batches[:1]
    if len(some) == 1:
        return some[0]
    pieces = zip(*(batch.tensors for batch in some), strict=True)
    joined = iter([torch.cat(tensors) for tensors in pieces])
    return some[0].map(lambda tensor: next(joined))


def merge(reports: Sequence[Report]) -> Report:
    """Return the joint report of the replicas of a stage.

    Raises:
        RunError: their weights differ, which they never should.
    """
    first = reports[0]
    if len(reports) == 1:
        return first
    for layer, digest in first.digests.items():
        if any(report.digests[layer] != digest for report in reports):
            raise RunError(
                f"the replicas of layer {layer} no longer have the same weights: the last "
                "checkpoint stays, continue with --resume (with --replicas for one actor a stage "
                "if it happens again)"
            )
    hits = [report.hits for report in reports if report.hits is not None]
    return dataclasses.replace(
        first,
        started_s=min(report.started_s for report in reports),
        busy_s=sum(report.busy_s for report in reports) / len(reports),
        idle_s=sum(report.idle_s for report in reports) / len(reports),
        waited_s=sum(report.waited_s for report in reports) / len(reports),
        images=sum(report.images for report in reports),
        memory_bytes=max(report.memory_bytes for report in reports),
        sent_bytes=sum(report.sent_bytes for report in reports),
        loss_sums=tuple(map(sum, zip(*(report.loss_sums for report in reports), strict=True))),
        hits=sum(hits[1:], start=hits[0]) if hits else None,
        logits=_whole([report.logits for report in reports], axis=1),
        labels=_whole([report.labels for report in reports], axis=0),
    )


def _whole(shares: Sequence[tuple[NDArray[Any], ...]], axis: int) -> tuple[NDArray[Any], ...]:
    """Return the array of each batch, whose images several replicas have, in their order."""
    return tuple(
        np.concatenate([piece for piece in pieces if piece.size] or pieces[:1], axis=axis)
        for pieces in zip(*shares, strict=True)
    )
