"""Checkpoints of a small network, made in place."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture
from rayff.runs.checkpoint import Checkpoint, CheckpointStore, Progress

NETWORK = architecture("tinycnn", num_classes=4, image_channels=3, width=4)
SEED = 11
PROGRESS = Progress(epoch=2, batch=3, images=40, loss_sums=(1.25, 0.1, 1e-300, 3.0))


def make_store(
    directory: Path, network: Architecture = NETWORK, *, seed: int = SEED, keep: int = 2
) -> CheckpointStore:
    return CheckpointStore(directory, network, seed=seed, keep=keep)


def make_checkpoint(
    step: int, progress: Progress = PROGRESS, network: Architecture = NETWORK, size: int = 64
) -> Checkpoint:
    """Return a checkpoint whose numbers are made of step and layer."""
    states = {
        layer.index: np.frombuffer(
            save({"weight": torch.full((size,), float(100 * step + layer.index))}), dtype=np.uint8
        )
        for layer in network.layers
    }
    return Checkpoint(step=step, progress=progress, states=states)


def same(one: Checkpoint | None, other: Checkpoint) -> bool:
    return (
        one is not None
        and (one.step, one.progress) == (other.step, other.progress)
        and {index: state.tobytes() for index, state in one.states.items()}
        == {index: state.tobytes() for index, state in other.states.items()}
    )


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())
