"""The order in which images are seen: pure functions of the seed and the epoch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_HOLDOUT_SEED = 20_250_424
_SAMPLE_SEED = 20_261_128
_OF_BLOCKS = 2**32 - 1
"""Number of the permutation of blocks among those of the windows."""


def epoch_order(num_images: int, *, seed: int, epoch: int) -> Indices:
    """Return the permutation of `num_images` indices for an epoch, shape (num_images,).

    It depends on (seed, epoch) alone, so a run resumes, or is cut otherwise, in the same order.
    """
    return _permutation(num_images, np.random.SeedSequence(seed, spawn_key=(epoch,)))


@dataclass(frozen=True)
class StreamOrder:
    """The order of an epoch that is read in blocks: the blocks shuffled, then rows in windows.

    A window is a few consecutive blocks of the shuffled ones, with `window` rows or a little
    more, whose rows are shuffled together. It depends on (seed, epoch) and the sizes alone.

    Attributes:
        sizes: rows of each block.
        window: rows that are shuffled together at least.
    """

    sizes: tuple[int, ...]
    window: int

    def blocks(self, *, seed: int, epoch: int) -> Indices:
        """Return the numbers of the blocks in the order in which they are read, (blocks,)."""
        return _permutation(len(self.sizes), _entropy(seed, epoch, _OF_BLOCKS))

    def windows(self, blocks: Indices) -> list[Indices]:
        """Cut an order of blocks into windows."""
        rows = np.cumsum(np.array(self.sizes)[blocks])
        found, begin, before = [], 0, 0
        for end, total in enumerate(rows, start=1):
            if total - before >= self.window or end == len(blocks):
                found.append(blocks[begin:end])
                begin, before = end, int(total)
        return found

    def rows(self, *, seed: int, epoch: int) -> Indices:
        """Return all rows in their order, (N,)."""
        starts = np.cumsum(self.sizes) - self.sizes
        parts = []
        for number, window in enumerate(self.windows(self.blocks(seed=seed, epoch=epoch))):
            of_blocks = [starts[block] + np.arange(self.sizes[block]) for block in window]
            rows = np.concatenate(of_blocks)
            parts.append(rows[_permutation(len(rows), _entropy(seed, epoch, number))])
        return np.concatenate(parts)


def _entropy(seed: int, epoch: int, part: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=(epoch, part))


def batches(order: Indices, batch_size: int) -> list[Indices]:
    """Cut an epoch's order into consecutive batches; the last one may be smaller."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def holdout(num_images: int, num_held_out: int) -> tuple[Indices, Indices]:
    """Choose the images to validate on: (kept, held out), disjoint and ascending.

    The choice is the same in every run, whatever its seed, so that runs compare.
    """
    if not 0 < num_held_out < num_images:
        raise ValueError(f"cannot hold out {num_held_out} of {num_images} images")
    order = _permutation(num_images, np.random.SeedSequence(_HOLDOUT_SEED))
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def sample(labels: npt.NDArray[np.int64], limit: int | None) -> Indices:
    """Choose at most `limit` images, each class in proportion: ascending indices.

    The choice is the same in every run, whatever its seed, and in every command.

    Args:
        labels: the class of each image, (N,).
        limit: images to choose; None, or more than there are, for all.
    """
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    _, members, counts = np.unique(labels, return_inverse=True, return_counts=True)
    share = limit * counts / len(labels)
    quota = np.floor(share).astype(np.int64)
    # of the images that rounding leaves, one each to the classes with the largest remainder
    largest = np.argsort(quota - share, kind="stable")
    quota[largest[: limit - quota.sum()]] += 1
    order = _permutation(len(labels), np.random.SeedSequence(_SAMPLE_SEED))
    by_class = order[np.argsort(members[order], kind="stable")]
    starts = np.cumsum(counts) - counts
    chosen = [by_class[start : start + n] for start, n in zip(starts, quota, strict=True)]
    return np.sort(np.concatenate(chosen))


def _permutation(length: int, entropy: np.random.SeedSequence) -> Indices:
    # NumPy promises the raw bits of a bit generator for good, but not Generator.permutation:
    # sorting the raw bits gives the same order on every version.
    keys = np.random.PCG64(entropy).random_raw(length)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)
