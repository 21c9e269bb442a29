"""Random generators: every layer has its own, seeded by numbers alone.

A state is a function of (run seed, layer number, step), never of what was drawn before, so no
boundary, chunk, window or resumption changes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_WEIGHTS, _DROPOUT, _HEAD, _STEP = 0, 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Share:
    """The images of a batch that a replica of a stage processes: all of them without replicas."""

    step: int
    """Number of the batch over the whole run."""
    batch_size: int
    """Images of the whole batch."""
    first: int = 0
    """Position of the share's first image in the batch."""


def _seed(seed: int, *key: int) -> int:
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


def weight_seed(seed: int, layer_index: int) -> int:
    """Return the seed of a layer's initial weights."""
    return _seed(seed, layer_index, _WEIGHTS)


def weight_generator(seed: int, layer_index: int) -> torch.Generator:
    """Return the generator of a layer's initial weights, on the CPU for every device."""
    return torch.Generator().manual_seed(weight_seed(seed, layer_index))


def head_seed(seed: int, layer_index: int) -> int:
    """Return the seed of the initial parameters of a layer's loss or linear head."""
    return _seed(seed, layer_index, _HEAD)


def dropout_state(
    seed: int, layer_index: int, share: Share, elements: int, device: torch.device
) -> Tensor:
    """Return what a device's kernels need to draw a layer's dropout bytes, int64, in host memory.

    A share has the bytes that its images have in the whole batch. For a CPU: the generator's state
    and increment, high and low half of each, and the first element. For a GPU: the layer's key,
    the step and the first image. See rayff.kernels.dropout_bits.

    Args:
        seed: of the run.
        layer_index: of the layer.
        share: which images of which batch.
        elements: of an image's activation.
        device: where the bytes are drawn.
    """
    if device.type != "cpu":
        key = np.uint64(_seed(seed, layer_index, _DROPOUT)).view(np.int64)
        return torch.tensor([int(key), share.step, share.first])
    sequence = np.random.SeedSequence(seed, spawn_key=(layer_index, _DROPOUT, share.step))
    numbers = np.random.PCG64DXSM(sequence).state["state"]
    halves = (*divmod(numbers["state"], 2**64), *divmod(numbers["inc"], 2**64))
    state = np.array([*halves, share.first * elements], dtype=np.uint64)
    return torch.from_numpy(state.view(np.int64))


@contextmanager
def seeded_generators(
    seed: int, layer_index: int, step: int, device: torch.device
) -> Iterator[None]:
    """Seed torch's own generators for one layer's step, and give them back as they were.

    What modules draw by themselves, such as torch.nn.Dropout, follows from the numbers alone then.

    Args:
        seed: of the run.
        layer_index: of the layer.
        step: number of the batch over the whole run.
        device: where the layer computes.
    """
    own = _seed(seed, layer_index, _STEP, step)
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(own)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(own)
        yield
