"""A slice of the chain that learns: the same object in one process and inside an actor."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from rayff.config.errors import TrainingDiverged
from rayff.data.augmentation import augment, parse_augmentations, sees_whole_batches
from rayff.data.images import Split
from rayff.data.streaming import Feed, decode_in_threads
from rayff.data.tasks import Splits
from rayff.engine.commands import (
    Batch,
    Chunk,
    Command,
    Evaluate,
    Indices,
    Report,
    Snapshot,
    Train,
)
from rayff.engine.images import open_images
from rayff.engine.learner import Learner, StageSpec
from rayff.kernels.memory import held_bytes
from rayff.kernels.precision import DTYPES
from rayff.learning.chain import Activations, normalise
from rayff.learning.generators import Share
from rayff.learning.layer_state import is_of_layer
from rayff.learning.readout import window_hits


class Stage:
    """Consecutive layers that learn; the first stage also holds the data.

    Args:
        spec: the slice and how it learns.
        device: where it computes.
        learner: the layers themselves.
        data: images and labels of every split (first stage only), or None.
        feed: decodes the images of splits that are streamed.
    """

    def __init__(
        self,
        spec: StageSpec,
        device: torch.device,
        learner: Learner,
        data: Splits | None = None,
        feed: Feed = decode_in_threads,
    ) -> None:
        self.spec = spec
        self.device = device
        self.learner = learner
        self.next_step = 0
        self.lr: float | None = None
        self.ended_s = time.perf_counter()
        self.augmentations = parse_augmentations(spec.config.augment)
        self.data = {
            split: open_images(
                images,
                device,
                spec.config.seed if split == "train" else None,
                spec.config.recipe.epochs,
                feed,
            )
            for split, images in (data or {}).items()
        }

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
        idle_s = start - self.ended_s
        before_s = self._waited_s
        onward, facts = self._carry_out(command, chunk)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ended_s = time.perf_counter()
        report = Report(
            started_s=started_s,
            busy_s=self.ended_s - start,
            idle_s=idle_s,
            waited_s=self._waited_s - before_s,
            memory_bytes=held_bytes(self.device),
            **facts,
        )
        return onward, report

    @property
    def _waited_s(self) -> float:
        return sum(images.waited_s for images in self.data.values())

    def _carry_out(
        self, command: Command, chunk: Chunk | None
    ) -> tuple[Chunk | None, dict[str, Any]]:
        if isinstance(command, Snapshot):
            return None, self._snapshot()
        if chunk is not None:
            batches = iter(chunk)
        elif isinstance(command, Train):
            batches = self._load("train", command, command.step)
        else:
            batches = self._load(command.split, command, None)
        if isinstance(command, Train):
            return self._train(command, batches)
        return self._evaluate(command, batches)

    def _load(
        self, split: Split, command: Train | Evaluate, first_step: int | None
    ) -> Iterator[Batch]:
        """Yield the stage's share of batches of a split, normalised on the device.

        `first_step` is the number of the first batch where they are trained on, and augmented.
        """
        images = self.data[split]
        dtype = DTYPES[self.spec.config.precision]
        augmentations = () if first_step is None else self.augmentations
        whole = sees_whole_batches(augmentations)
        for offset, indices in enumerate(command.batches):
            rows = self.spec.replica.rows(len(indices))
            share = slice(rows.start, rows.stop)
            loaded = indices if whole else indices[share]
            pixels, labels = images.fetch(loaded, command.epoch)
            if first_step is not None and augmentations:
                pixels = augment(
                    pixels,
                    augmentations,
                    seed=self.spec.config.seed,
                    step=first_step + offset,
                    first=0 if whole else rows.start,
                )
            if whole:
                pixels, labels = pixels[share], labels[share]
            yield Batch(activations=Activations(features=normalise(pixels, dtype)), labels=labels)

    def _train(
        self, command: Train, batches: Iterator[Batch]
    ) -> tuple[Chunk | None, dict[str, Any]]:
        onward: Chunk = []
        losses: list[Tensor] = []
        images = 0
        rows = zip(command.batches, command.lrs, batches, strict=True)
        for offset, (indices, lr, batch) in enumerate(rows):
            if lr != self.lr:
                self.learner.set_lr(lr)
                self.lr = lr
            first = self.spec.replica.rows(len(indices)).start
            share = Share(step=command.step + offset, batch_size=len(indices), first=first)
            activations, layer_losses = self.learner.learn(batch, share)
            losses += layer_losses
            images += len(batch.labels)
            if not self.spec.is_last:
                onward.append(Batch(activations=activations, labels=batch.labels))
        sizes = [len(indices) for indices in command.batches]
        self.next_step = command.step + len(sizes)
        table = torch.stack(losses).view(len(sizes), len(self.learner.loss_layers)).double().cpu()
        self._check_finite(table, command.step)
        sums = (table * torch.tensor(sizes, dtype=torch.float64)[:, None]).sum(dim=0)
        return onward or None, {"images": images, "loss_sums": tuple(sums.tolist())}

    def _check_finite(self, losses: Tensor, step: int) -> None:
        """Raise TrainingDiverged for the first loss of (batches, layers) that is not finite."""
        broken = (~losses.isfinite()).nonzero()
        if len(broken):
            offset, position = broken[0].tolist()
            index = self.learner.loss_layers[position]
            raise TrainingDiverged(index, step + offset, losses[offset, position].item())

    def _evaluate(
        self, command: Evaluate, batches: Iterator[Batch]
    ) -> tuple[Chunk | None, dict[str, Any]]:
        onward: Chunk = []
        all_logits: list[Tensor] = []
        labels: list[Tensor] = []
        images = 0
        sizes: list[int] = []
        for batch in batches:
            sizes.append(len(batch.labels))
            if not len(batch.labels):
                onward.append(batch)
                continue
            activations, own = self.learner.classify(batch.activations)
            logits = (*batch.logits, *own)
            images += len(batch.labels)
            if self.spec.is_last:
                all_logits.append(torch.stack(logits))
                labels.append(batch.labels)
            else:
                onward.append(Batch(activations=activations, labels=batch.labels, logits=logits))
        if not self.spec.is_last:
            return onward, {"images": images, "hits": None}
        hits = window_hits(torch.cat(all_logits, dim=1), torch.cat(labels)) if all_logits else None
        facts: dict[str, Any] = {"images": images, "hits": hits}
        if command.logits:
            asked = [
                self._own(positions, len(indices))
                for positions, indices in zip(command.logits, command.batches, strict=True)
            ]
            facts["logits"] = _by_batch(all_logits, sizes, asked, dim=1)
            facts["labels"] = _by_batch(labels, sizes, asked, dim=0)
        return None, facts

    def _own(self, positions: Indices, batch_size: int) -> Indices:
        """Return those of ascending positions in a batch that are in the stage's share, in it."""
        rows = self.spec.replica.rows(batch_size)
        return positions[(positions >= rows.start) & (positions < rows.stop)] - rows.start

    def _snapshot(self) -> dict[str, Any]:
        """Return the safetensors bytes of every layer, by global number.

        Weights that the last batch broke do not take the place of the last good checkpoint. Of
        several replicas the first sends the bytes, and all of them a digest.
        """
        states: dict[int, NDArray[np.uint8]] = {}
        for index, state in self.learner.states().items():
            if not all(value.isfinite().all() for n, value in state.items() if is_of_layer(n)):
                raise TrainingDiverged(index, self.next_step, math.nan)
            states[index] = np.frombuffer(save(state), dtype=np.uint8)
        if self.spec.replica.count == 1:
            return {"states": states}
        digests = {
            index: hashlib.sha256(state.data).hexdigest() for index, state in states.items()
        }
        return {"states": {} if self.spec.replica.index else states, "digests": digests}


def _by_batch(
    tensors: Sequence[Tensor], sizes: Sequence[int], asked: Sequence[Indices], dim: int
) -> tuple[NDArray[Any], ...]:
    """Return the images asked for of each batch; an empty array where the stage has none of it."""
    there = iter(tensors)
    return tuple(
        next(there).cpu().numpy().take(positions, axis=dim) if size else np.empty(0)
        for size, positions in zip(sizes, asked, strict=True)
    )
