"""A slice of the chain that learns: the same object in one process and inside an actor."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from rayff.data.images import ImageSet, Split
from rayff.learning.chain import Chain, Crossing, normalise
from rayff.learning.layer import CWConv
from rayff.learning.optimizers import layer_state, make_optimizer, restore_layer, set_lr
from rayff.learning.precision import DTYPES
from rayff.learning.replay import Record, ReplayedStep, cuda_graph
from rayff.learning.rules import RULES
from rayff.learning.sip import window_hits
from rayff.learning.streams import Share
from rayff.spec import Architecture, Kernels, Recipe, TrainingDiverged
from rayff.training.messages import (
    Batch,
    Chunk,
    Command,
    Indices,
    Report,
    Snapshot,
    Train,
)
from rayff.training.replicas import Replica
from rayff.training.summing import Summing


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """What a stage is made of."""

    architecture: Architecture
    """The stage's slice of the network."""
    is_last: bool
    recipe: Recipe
    seed: int
    precision: str
    rule: str = "fast"
    """The name of the rule by which it learns."""
    kernels: tuple[Kernels, ...] = ()
    """How each layer of the slice computes its convolution; by default with torch's."""
    replica: Replica = Replica()
    """Which of the stage's actors it is: it sees that share of every batch."""


class Stage:
    """Consecutive layers with their optimizers; the first stage also holds the data.

    Args:
        spec: the slice and how it learns.
        device: where it computes.
        data: images and labels of every split (first stage only), or None.
        states: safetensors bytes by global layer number, to go on from a snapshot.
        summing: adds up the gradients of the stage's replicas; None for a stage of one actor.
    """

    def __init__(
        self,
        spec: StageSpec,
        device: torch.device,
        data: Mapping[Split, ImageSet] | None = None,
        states: Mapping[int, NDArray[np.uint8]] | None = None,
        summing: Summing | None = None,
    ) -> None:
        self.spec = spec
        self.summing = summing
        self.device = device
        self.dtype = DTYPES[spec.precision]
        self.next_step = 0
        self.rules = RULES[spec.rule]
        chain = Chain.build(
            spec.architecture, dropout=spec.recipe.dropout, seed=spec.seed, dtype=self.dtype
        )
        self.chain = self.rules.arrange(chain.to(device))
        for layer, kernels in zip(self.chain.cwconvs(), spec.kernels, strict=False):
            layer.kernels = kernels
        # A GPU's step is recorded; not the sums of replicas, nor an optimizer whose learning rate
        # is no tensor.
        recordable = spec.rule == "fast" and summing is None and spec.recipe.optimizer != "sgd"
        self.record: Record | None = cuda_graph if recordable and device.type == "cuda" else None
        self.replayed: ReplayedStep | None = None
        self.optimizers = {
            layer.spec.index: make_optimizer(layer, spec.recipe) for layer in self.chain.cwconvs()
        }
        # a private copy: what arrives may be memory of the object store, which a view would pin
        self.data = {
            split: (
                torch.tensor(images.images, device=device),
                torch.tensor(images.labels, device=device),
            )
            for split, images in (data or {}).items()
        }
        if states is not None:
            for layer in self.chain.cwconvs():
                state = load(states[layer.spec.index].tobytes())
                restore_layer(layer, self.optimizers[layer.spec.index], state)

    def handle(self, command: Command, chunk: Chunk | None) -> tuple[Chunk | None, Report]:
        """Carry out one command.

        Args:
            command: what to do.
            chunk: the stage's share of each batch that comes from the stage before; None at the
                first stage.

        Returns:
            the batches for the next stage (None where nothing goes on) and the report.

        Raises:
            TrainingDiverged: a loss is not finite, or would not be in the next batch.
        """
        started_s, start = time.time(), time.perf_counter()
        onward, facts = self._carry_out(command, chunk)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        busy_s = time.perf_counter() - start
        return onward, Report(started_s=started_s, busy_s=busy_s, **facts)

    def _carry_out(
        self, command: Command, chunk: Chunk | None
    ) -> tuple[Chunk | None, dict[str, Any]]:
        if isinstance(command, Snapshot):
            return None, self._snapshot()
        split: Split = "train" if isinstance(command, Train) else command.split
        batches = self._enter(split, command.batches) if chunk is None else iter(chunk)
        if isinstance(command, Train):
            return self._train(command, batches)
        return self._evaluate(batches)

    def _enter(self, split: Split, batches: tuple[Indices, ...]) -> Iterator[Batch]:
        """Pick its share of the batches from the data, normalised on the device."""
        images, labels = self.data[split]
        for indices in batches:
            rows = self.spec.replica.rows(len(indices))
            where = torch.from_numpy(indices[rows.start : rows.stop])
            where = where.to(self.device, non_blocking=True)
            crossing = Crossing(features=normalise(images[where], self.dtype))
            yield Batch(crossing=crossing, labels=labels[where])

    def _train(
        self, command: Train, batches: Iterator[Batch]
    ) -> tuple[Chunk | None, dict[str, Any]]:
        for optimizer in self.optimizers.values():
            set_lr(optimizer, command.lr)
        onward: Chunk = []
        losses: list[Tensor] = []
        images = 0
        for offset, (indices, batch) in enumerate(zip(command.batches, batches, strict=True)):
            first = self.spec.replica.rows(len(indices)).start
            share = Share(step=command.step + offset, batch_size=len(indices), first=first)
            crossing, layer_losses = self._learn(batch, share)
            losses += layer_losses
            images += len(batch.labels)
            if not self.spec.is_last:
                onward.append(Batch(crossing=crossing, labels=batch.labels))
        sizes = [len(indices) for indices in command.batches]
        self.next_step = command.step + len(sizes)
        table = torch.stack(losses).view(len(sizes), len(self.chain)).double().cpu()
        self._check_finite(table, command.step)
        sums = (table * torch.tensor(sizes, dtype=torch.float64)[:, None]).sum(dim=0)
        return onward or None, {"images": images, "loss_sums": tuple(sums.tolist())}

    def _learn(self, batch: Batch, share: Share) -> tuple[Crossing, list[Tensor]]:
        """Let every layer learn from its share of a batch.

        A layer needs its new weights at the next batch only, so the replicas add up its gradient
        while the layers behind it compute, and the optimizers step at the end. Alone, a layer
        steps at once, and its gradient is gone. A share without images adds nothing to the
        gradients; no kernel sees it.
        """
        if self.record is not None and len(batch.labels) == self.spec.recipe.batch_size:
            if self.replayed is None:
                self.replayed = ReplayedStep(
                    self.chain, self.optimizers, batch.crossing, batch.labels, self.record
                )
            return self.replayed(batch.crossing, batch.labels, share)
        losses: list[Tensor] = []
        waits: list[Callable[[], None]] = []

        def step(layer: CWConv) -> None:
            self.optimizers[layer.spec.index].step()
            layer.weight.grad = None

        def learned(layer: CWConv, loss: Tensor) -> None:
            assert layer.weight.grad is not None, "the rule leaves a gradient"
            losses.append(loss)
            if self.summing is None:
                step(layer)
            else:
                waits.append(self.summing.start(layer.weight.grad))

        def visit(layer: CWConv, x: Tensor) -> Tensor:
            features, loss = self.rules.learn(layer, x, batch.labels, share)
            learned(layer, loss)
            return features

        if len(batch.labels):
            crossing = self.chain.walk(batch.crossing, visit)
        else:
            crossing = batch.crossing
            for layer in self.chain.cwconvs():
                layer.weight.grad = torch.zeros_like(layer.weight)
                learned(layer, torch.zeros((), device=self.device))
        for wait, layer in zip(waits, self.chain.cwconvs(), strict=False):
            wait()
            step(layer)
        return crossing, losses

    def _check_finite(self, losses: Tensor, step: int) -> None:
        """Raise TrainingDiverged for the first loss of (batches, layers) that is not finite."""
        broken = (~losses.isfinite()).nonzero()
        if len(broken):
            offset, position = broken[0].tolist()
            index = self.spec.architecture[position].index
            raise TrainingDiverged(index, step + offset, losses[offset, position].item())

    def _evaluate(self, batches: Iterator[Batch]) -> tuple[Chunk | None, dict[str, Any]]:
        onward: Chunk = []
        hits: NDArray[np.int64] | None = None
        images = 0
        for batch in batches:
            if not len(batch.labels):
                onward.append(batch)
                continue
            crossing, own = self.chain.evaluate(batch.crossing, self.rules.classify)
            goodness = (*batch.goodness, *own)
            images += len(batch.labels)
            if self.spec.is_last:
                counts = window_hits(torch.stack(goodness), batch.labels)
                hits = counts if hits is None else hits + counts
            else:
                onward.append(Batch(crossing=crossing, labels=batch.labels, goodness=goodness))
        return None if self.spec.is_last else onward, {"images": images, "hits": hits}

    def _snapshot(self) -> dict[str, Any]:
        """Return the safetensors bytes of every layer, by global number.

        Weights that the last batch broke do not take the place of the last good checkpoint. Of
        several replicas the first sends the bytes, and all of them a digest.
        """
        for layer in self.chain.cwconvs():
            if not layer.weight.isfinite().all():
                raise TrainingDiverged(layer.spec.index, self.next_step, math.nan)
        states = {
            layer.spec.index: np.frombuffer(
                save(layer_state(layer, self.optimizers[layer.spec.index])), dtype=np.uint8
            )
            for layer in self.chain.cwconvs()
        }
        if self.spec.replica.count == 1:
            return {"states": states}
        digests = {
            index: hashlib.sha256(state.data).hexdigest() for index, state in states.items()
        }
        return {"states": {} if self.spec.replica.index else states, "digests": digests}
