"""A slice of the chain that learns: the same object in one process and inside an actor."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
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
from rayff.learning.rule import local_step
from rayff.learning.rules import RULES
from rayff.learning.sip import window_hits
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


class Stage:
    """Consecutive layers with their optimizers; the first stage also holds the data.

    Args:
        spec: the slice and how it learns.
        device: where it computes.
        data: images and labels of every split (first stage only), or None.
        states: safetensors bytes by global layer number, to go on from a snapshot.
    """

    def __init__(
        self,
        spec: StageSpec,
        device: torch.device,
        data: Mapping[Split, ImageSet] | None = None,
        states: Mapping[int, NDArray[np.uint8]] | None = None,
    ) -> None:
        self.spec = spec
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
            chunk: the batches that the stage before sends; None at the first stage.

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
            return None, {"states": self._snapshot()}
        split: Split = "train" if isinstance(command, Train) else command.split
        batches = self._enter(split, command.batches) if chunk is None else iter(chunk)
        if isinstance(command, Train):
            return self._train(command, batches)
        return self._evaluate(batches)

    def _enter(self, split: Split, batches: tuple[Indices, ...]) -> Iterator[Batch]:
        """Pick the batches from the data; images are normalised on the device."""
        images, labels = self.data[split]
        for indices in batches:
            where = torch.from_numpy(indices).to(self.device)
            crossing = Crossing(features=normalise(images[where], self.dtype))
            yield Batch(crossing=crossing, labels=labels[where])

    def _train(
        self, command: Train, batches: Iterator[Batch]
    ) -> tuple[Chunk | None, dict[str, Any]]:
        for optimizer in self.optimizers.values():
            set_lr(optimizer, command.lr)
        onward: Chunk = []
        losses: list[Tensor] = []
        sizes: list[int] = []
        for offset, batch in enumerate(batches):
            step = command.step + offset

            def visit(layer: CWConv, x: Tensor, batch: Batch = batch, step: int = step) -> Tensor:
                optimizer = self.optimizers[layer.spec.index]
                features, loss = local_step(
                    self.rules.learn, layer, optimizer, x, batch.labels, step
                )
                losses.append(loss)
                return features

            crossing = self.chain.walk(batch.crossing, visit)
            sizes.append(len(batch.labels))
            if not self.spec.is_last:
                onward.append(Batch(crossing=crossing, labels=batch.labels))
        self.next_step = command.step + len(sizes)
        table = torch.stack(losses).view(len(sizes), len(self.chain)).double().cpu()
        self._check_finite(table, command.step)
        sums = (table * torch.tensor(sizes, dtype=torch.float64)[:, None]).sum(dim=0)
        facts = {"images": sum(sizes), "loss_sums": tuple(sums.tolist())}
        return onward or None, facts

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
            crossing, own = self.chain.evaluate(batch.crossing, self.rules.classify)
            goodness = (*batch.goodness, *own)
            images += len(batch.labels)
            if self.spec.is_last:
                counts = window_hits(torch.stack(goodness), batch.labels)
                hits = counts if hits is None else hits + counts
            else:
                onward.append(Batch(crossing=crossing, labels=batch.labels, goodness=goodness))
        return onward or None, {"images": images, "hits": hits}

    def _snapshot(self) -> dict[int, NDArray[np.uint8]]:
        """Return the safetensors bytes of every layer, by global number.

        Weights that the last batch broke do not take the place of the last good checkpoint.
        """
        for layer in self.chain.cwconvs():
            if not layer.weight.isfinite().all():
                raise TrainingDiverged(layer.spec.index, self.next_step, math.nan)
        return {
            layer.spec.index: np.frombuffer(
                save(layer_state(layer, self.optimizers[layer.spec.index])), dtype=np.uint8
            )
            for layer in self.chain.cwconvs()
        }
