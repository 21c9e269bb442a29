"""The order in which images are seen: pure functions of the seed and the epoch."""

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_HOLDOUT_SEED = 20_250_424


def epoch_order(num_images: int, *, seed: int, epoch: int) -> Indices:
    """Return the permutation of `num_images` indices for an epoch, shape (num_images,).

    It depends on (seed, epoch) alone, so a run resumes, or is cut otherwise, in the same order.
    """
    return _permutation(num_images, np.random.SeedSequence(seed, spawn_key=(epoch,)))


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


def _permutation(length: int, entropy: np.random.SeedSequence) -> Indices:
    # NumPy promises the raw bits of a bit generator for good, but not Generator.permutation:
    # sorting the raw bits gives the same order on every version.
    keys = np.random.PCG64(entropy).random_raw(length)
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)
