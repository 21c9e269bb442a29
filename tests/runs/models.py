"""Run directories with the model of a small network, made in place."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from rayff import TrainConfig
from rayff.models.architecture import Architecture
from rayff.runs.model_file import ModelDescription, write_model
from rayff.runs.run_directory import RunDirectory
from tests.runs.checkpoints import NETWORK

CLASSES = ("cat", "dog", "owl", "fox")
CONFIG = TrainConfig(arch="tinycnn", width=4, task="some/task", cuts=(1, 3), lr=0.25, seed=9)


def weights(seed: int = 0, network: Architecture = NETWORK) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(layer.weight_shape, generator=generator) for layer in network.layers]


def states(layers: list[Tensor], **more: Tensor) -> dict[int, NDArray[np.uint8]]:
    """Return what a snapshot has: parameters and the optimizer's state."""
    step = torch.tensor(3.0)
    return {
        index: np.frombuffer(save({"weight": weight, "optimizer.step": step, **more}), np.uint8)
        for index, weight in enumerate(layers)
    }


def write_weights(
    run_dir: Path, layers: list[Tensor] | None = None, more: dict[str, Tensor] = {}, **about: Any
) -> None:
    """Write the model; `about` is of its description, `more` are further tensors of a layer."""
    description = ModelDescription(
        **{
            "architecture": NETWORK,
            "sip_window": (1, 2),
            "class_names": CLASSES,
            "precision": "fp32",
            **about,
        }
    )
    write_model(run_dir, description, states(layers or weights(), **more))


def write_run(run_dir: Path, **model: Any) -> Path:
    """Write config.json and the model."""
    RunDirectory(run_dir).create(CONFIG)
    write_weights(run_dir, **model)
    return run_dir
