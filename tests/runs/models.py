"""Run directories with the model of a small network, made in place."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from rayff import TrainConfig
from rayff.config.local_loss import LossConfig
from rayff.learning.chain import Chain
from rayff.learning.fusion import Fusion
from rayff.models.architecture import Architecture
from rayff.runs.model_file import ModelDescription, write_model
from rayff.runs.run_directory import RunDirectory
from tests.runs.checkpoints import NETWORK

CLASSES = ("cat", "dog", "owl", "fox")
CONFIG = TrainConfig(arch="tinycnn", width=4, task="some/task", cuts=(1, 3), lr=0.25, seed=9)


def weights(seed: int = 0, network: Architecture = NETWORK) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(layer.weight_shape, generator=generator) for layer in network.layers]


def write_weights(
    run_dir: Path,
    layers: list[Tensor] | None = None,
    heads: list[dict[str, Tensor]] | None = None,
    fusion: Fusion | None = None,
    **about: Any,
) -> None:
    """Write the model of a snapshot.

    Args:
        run_dir: the run directory.
        layers: the weights of each layer.
        heads: the parameters of each layer's loss.
        fusion: the readout of that name.
        about: changes of the description.
    """
    layers = layers or weights()
    description = ModelDescription(
        **{
            "architecture": NETWORK,
            "sip_window": (1, 2),
            "class_names": CLASSES,
            "precision": "fp32",
            **about,
        }
    )
    states = {
        index: np.frombuffer(
            save({"weight": weight, **head, "optimizer.step": torch.ones(())}), np.uint8
        )
        for index, (weight, head) in enumerate(
            zip(layers, heads or [{}] * len(layers), strict=True)
        )
    }
    write_model(run_dir, description, states, fusion)


def write_modules(run_dir: Path, network: Architecture) -> Path:
    """Write config.json and the model of a network of modules with initial weights."""
    RunDirectory(run_dir).create(CONFIG)
    loss = LossConfig(name="predsim")
    states = {
        layer.spec.index: np.frombuffer(
            save({name: value.contiguous() for name, value in layer.state_dict().items()}),
            np.uint8,
        )
        for layer in Chain.build(network, loss=loss).parts()
    }
    description = ModelDescription(
        architecture=network,
        sip_window=(1, 2),
        class_names=CLASSES,
        precision="fp32",
        loss=loss,
    )
    write_model(run_dir, description, states)
    return run_dir


def write_run(run_dir: Path, **model: Any) -> Path:
    """Write config.json and the model."""
    RunDirectory(run_dir).create(CONFIG)
    write_weights(run_dir, **model)
    return run_dir
