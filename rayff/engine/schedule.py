"""The order of a run's commands: a pure function of the run and of where it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from rayff.config.errors import UserError
from rayff.config.recipe import Recipe
from rayff.data.images import Split
from rayff.data.order import StreamOrder, batches, epoch_order
from rayff.engine.commands import Command, Evaluate, Indices, Snapshot, Train
from rayff.learning.lr_schedule import batch_lr

EVALUATION_BATCH = 128
"""Images of an evaluation batch at least; it needs less memory than a training batch."""
_EVALUATED: tuple[Split, ...] = ("valid", "test")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Everything that the order of commands depends on."""

    recipe: Recipe
    seed: int
    num_images: dict[Split, int]
    chunk: int
    """Batches in a command."""
    checkpoint_every: int
    """Epochs from one snapshot to the next."""
    eval_every: int = 1
    """Epochs from one evaluation to the next."""
    sampled: Indices = field(default_factory=lambda: np.arange(0))
    """Validation images whose logits come to the driver before a snapshot, to fit readouts."""
    stream: StreamOrder | None = None
    """Order of training images that are streamed; None for those in memory."""
    fusion: bool = False
    """Whether the logits of the test images come to the driver after the last epoch."""

    def __post_init__(self) -> None:
        if self.recipe.batch_size > self.num_images["train"]:
            raise UserError(
                f"--batch-size {self.recipe.batch_size} is larger than the "
                f"{self.num_images['train']:,} training images; choose a smaller one"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Number of training batches of an epoch; the last may be smaller."""
        return -(-self.num_images["train"] // self.recipe.batch_size)

    def lr(self, epoch: int, batch: int) -> float:
        """Return the learning rate of a batch of an epoch, both counted from 0."""
        return batch_lr(self.recipe, epoch, batch, self.batches_per_epoch)

    def commands(
        self, epoch: int = 0, batch: int = 0, *, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[Command]:
        """Yield the commands from batch `batch` of epoch `epoch` to the final snapshot.

        Each epoch trains, evaluates on the validation and the test images where that is due, and
        is followed by a snapshot where one is. Once `stop` says so, a final snapshot of the place
        reached ends the run; an epoch whose evaluation it interrupts is evaluated again on
        resumption. A run that is complete yields its final snapshot again, which writes missing
        files again.
        """
        if epoch == self.recipe.epochs:
            yield Snapshot(epoch=epoch, batch=0, final=True)
        for current in range(epoch, self.recipe.epochs):
            begin = batch if current == epoch else 0
            todo = batches(self._order(current), self.recipe.batch_size)
            for position in range(begin, len(todo), self.chunk):
                if stop():
                    yield Snapshot(epoch=current, batch=position, final=True)
                    return
                chunk = tuple(todo[position : position + self.chunk])
                yield Train(
                    epoch=current,
                    step=current * len(todo) + position,
                    lrs=tuple(self.lr(current, position + n) for n in range(len(chunk))),
                    batches=chunk,
                )
            last = current + 1 == self.recipe.epochs
            due = last or (current + 1) % self.checkpoint_every == 0
            for evaluation in self._evaluations(current, last=last):
                if stop():
                    yield Snapshot(epoch=current, batch=len(todo), final=True)
                    return
                yield evaluation
            if due:
                yield Snapshot(epoch=current + 1, batch=0, final=last)

    def _order(self, epoch: int) -> Indices:
        if self.stream is not None:
            return self.stream.rows(seed=self.seed, epoch=epoch)
        return epoch_order(self.num_images["train"], seed=self.seed, epoch=epoch)

    def _evaluations(self, epoch: int, *, last: bool) -> Iterator[Evaluate]:
        """Yield the evaluations of an epoch, if any.

        They return logits, to fit readouts, where a snapshot comes before the next ones.
        """
        if not last and (epoch + 1) % self.eval_every:
            return
        before_next = range(epoch, min(epoch + self.eval_every, self.recipe.epochs - 1))
        due = last or any((each + 1) % self.checkpoint_every == 0 for each in before_next)
        size = max(self.recipe.batch_size, EVALUATION_BATCH)
        wanted = {split: np.zeros(self.num_images[split], bool) for split in _EVALUATED}
        wanted["valid"][self.sampled] = due
        wanted["test"][:] = last and self.fusion
        for split, mask in wanted.items():
            for chunk in _chunks(batches(np.arange(len(mask)), size), self.chunk):
                logits = tuple(np.flatnonzero(mask[batch]) for batch in chunk)
                logits = logits if any(map(len, logits)) else ()
                yield Evaluate(epoch=epoch, split=split, batches=chunk, logits=logits)


def _chunks(items: Sequence[Indices], size: int) -> Iterator[tuple[Indices, ...]]:
    for start in range(0, len(items), size):
        yield tuple(items[start : start + size])
