"""A run's trained network: model.safetensors, and architecture.json that describes it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rayff.config.errors import UserError
from rayff.config.local_loss import GOODNESS, LossConfig
from rayff.config.recipe import Method
from rayff.config.registry import ImportPathError
from rayff.config.text import is_plain
from rayff.config.train_config import Resize
from rayff.kernels.precision import DTYPES
from rayff.learning.classifier import Classifier
from rayff.learning.fusion import Fusion
from rayff.learning.layer_state import Layout, is_of_layer
from rayff.learning.methods import build_network, layouts, num_classifiers
from rayff.learning.readout import Readouts, Temperatures
from rayff.models.architecture import Architecture
from rayff.runs.files import write_atomically
from rayff.runs.readout_json import (
    fusion_of,
    temperatures_from_json,
    temperatures_to_json,
    window_from_json,
)
from rayff.runs.run_directory import RunDirectory, read_json, resume_command
from rayff.runs.run_lock import is_held

WEIGHTS = "model.safetensors"
DESCRIPTION = "architecture.json"
DIGEST = "weights_sha256"
"""Name in the description of the digest of the weights that it belongs to."""
FUSION = "readout.fusion."
"""How the names of fusion's tensors begin."""

_WAITS_S = (0.05, 0.2, 1.0, 4.0)
"""Until a training that has written weights has written their description too."""


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """The content of architecture.json, which describes the network in model.safetensors."""

    architecture: Architecture
    sip_window: tuple[int, int]
    """First and last layer whose logits are summed."""
    class_names: tuple[str, ...]
    precision: str
    method: Method = "ff"
    loss: LossConfig = GOODNESS
    resize: Resize = "crop"
    """What became of training images that were not square."""
    temperatures: Temperatures | None = None
    """Of the window and of the last layer; None where they were not fitted."""

    def to_dict(self) -> dict[str, Any]:
        """Return the description as JSON can hold it."""
        return {
            **vars(self),
            "architecture": self.architecture.to_dict(),
            "loss": dataclasses.asdict(self.loss),
            "temperatures": temperatures_to_json(self.temperatures),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelDescription:
        """Read what `to_dict` returned.

        Raises:
            ValueError: a value is missing, of another type, or does not fit the others.
        """
        for name in ("architecture", "sip_window", "class_names", "precision"):
            if not isinstance(data, dict) or name not in data:
                raise ValueError(f"{DESCRIPTION} lacks {name!r}")
        method = data.get("method", "ff")
        if method not in get_args(Method):
            raise ValueError(f"there is no method {method!r}")
        if data["precision"] not in DTYPES:
            raise ValueError(f"{DESCRIPTION} has an unknown precision")
        resize = data.get("resize", "crop")
        if resize not in get_args(Resize):
            raise ValueError(f"there is no way {resize!r} to resize images")
        architecture = Architecture.from_dict(data["architecture"])
        window = window_from_json(data["sip_window"], num_classifiers(method, architecture))
        names = data["class_names"]
        if (
            type(names) is not list
            or len(names) != architecture.num_classes
            or not all(is_plain(name) for name in names)
        ):
            raise ValueError("its class names do not fit the network")
        return cls(
            architecture=architecture,
            sip_window=window,
            class_names=tuple(names),
            precision=data["precision"],
            method=method,
            loss=LossConfig.from_dict(data["loss"]) if "loss" in data else GOODNESS,
            resize=resize,
            temperatures=temperatures_from_json(data.get("temperatures"), window),
        )


def write_model(
    directory: Path,
    description: ModelDescription,
    states: Mapping[int, NDArray[np.uint8]],
    fusion: Fusion | None = None,
) -> None:
    """Write the network of a snapshot: `layers.N.weight` and the like, without optimizer state.

    Fusion is `readout.fusion.weight` and `readout.fusion.bias`.

    Args:
        directory: the run directory.
        description: of the network.
        states: the bytes of each layer's safetensors file, by number.
        fusion: the readout of that name, where it was fitted.

    Raises:
        OSError: the disk is full or gone.
    """
    weights = {
        f"layers.{index}.{name}": value
        for index in sorted(states)
        for name, value in load(states[index].tobytes()).items()
        if is_of_layer(name)
    }
    if fusion is not None:
        weights |= {FUSION + name: torch.tensor(v) for name, v in vars(fusion).items()}
    content = save(weights)
    write_atomically(directory / WEIGHTS, content)
    text = json.dumps({**description.to_dict(), DIGEST: digest(content)}, indent=1)
    write_atomically(directory / DESCRIPTION, text.encode() + b"\n")


def read_model(run_dir: Path, dtype: torch.dtype | None = None) -> Classifier:
    """Return the trained network of a run, on the CPU in eval mode.

    Args:
        run_dir: the run directory.
        dtype: number format of the activations; None for that of the training.

    Raises:
        UserError: no run directory, no model in it yet, a damaged one, or one whose local loss
            or modules cannot be imported here.
    """
    RunDirectory(run_dir).read_config()
    description, weights = run_dir / DESCRIPTION, run_dir / WEIGHTS
    if not (description.exists() and weights.exists()):
        raise UserError(
            f"{run_dir} holds no trained model yet: its first checkpoint was not reached; "
            f"continue with: {resume_command(run_dir)}"
        )
    try:
        described, content, belong_together = _read_pair(description, weights)
        about = ModelDescription.from_dict(described)
        tensors = load(content)
        fused = {n: tensors.pop(n).numpy() for n in [*tensors] if n.startswith(FUSION)}
        # before the network takes the memory that a description claims
        held = layouts(about.method, about.architecture, about.loss)
        _check_weights(about.architecture, held, tensors)
        network = build_network(
            about.method,
            about.architecture,
            loss=about.loss,
            window=about.sip_window,
            class_names=about.class_names,
            dtype=dtype or DTYPES[about.precision],
        )
        for spec, module in network.learned_layers:
            names = held[spec.index].tensors
            own = {name: tensors[f"layers.{spec.index}.{name}"] for name in names}
            module.load_state_dict(own, strict=False)  # tied parameters are saved once
        network.resize = about.resize
        network.load_readouts(
            Readouts(
                window=about.sip_window,
                temperatures=about.temperatures,
                fusion=fusion_of(
                    *(fused, network.num_classifiers, about.architecture.num_classes, FUSION)
                )
                if fused
                else None,
            )
        )
        network.eval()
        if about.architecture.source is not None:
            _check_modules(network)
        if not belong_together:
            raise ValueError(
                f"{WEIGHTS} holds other weights than those that {DESCRIPTION} describes"
            )
    except ImportPathError as error:
        raise UserError(f"the model in {run_dir} needs your code: {error}") from error
    except (KeyError, OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the model in {run_dir} is damaged: {reason}; write it again with --resume"
        ) from error
    return network


def digest(weights: bytes) -> str:
    """Return what tells weights from all others."""
    return hashlib.sha256(weights).hexdigest()


def _read_pair(description: Path, weights: Path) -> tuple[Any, bytes, bool]:
    """Read both files; again where a training may have written one of them in between.

    Returns:
        what is described, the weights, and whether they belong together; older descriptions do not
        say.
    """
    for wait_s in (*_WAITS_S, None):
        described, content = read_json(description), weights.read_bytes()
        named = described.get(DIGEST) if isinstance(described, dict) else None
        belong_together = named in (None, digest(content))
        if belong_together or wait_s is None or not _is_written(description.parent):
            break
        time.sleep(wait_s)
    return described, content, belong_together


def _is_written(folder: Path) -> bool:
    """Return whether a training is at work in a run directory, or in the one around its best."""
    return is_held(folder) or is_held(folder.parent)


def _check_modules(network: Classifier) -> None:
    """Raise an ImportPathError where a network of modules does not classify an image."""
    image = torch.zeros(1, *network.architecture.image_shape, dtype=torch.uint8)
    try:
        network.logits(image)
    except Exception as error:  # the user's code may raise anything
        reason = " ".join(str(error).split())
        raise ImportPathError(
            f"--arch {network.architecture.name} does not classify an image with the saved shapes "
            f"({type(error).__name__}: {reason}); use the code that it was trained with"
        ) from error


def _check_weights(
    architecture: Architecture,
    held: Mapping[int, Layout],
    tensors: Mapping[str, Tensor],
) -> None:
    """Raise a ValueError where the weights are not those of a whole network for images."""
    first = architecture[0]
    channels, *sides = first.in_shape
    if first.index != 0 or channels not in (1, 3) or len(sides) != 2 or sides[0] != sides[1]:
        raise ValueError(f"its first layer takes {first.in_shape}, which are no images")
    expected = {
        f"layers.{index}.{name}": shape_and_dtype
        for index, own in held.items()
        for name, shape_and_dtype in own.tensors.items()
    }
    made_by = architecture.source
    changed = "" if made_by is None else f", or the code of --arch {made_by.function} has changed"
    if odd := expected.keys() ^ tensors.keys():
        raise ValueError(f"weights and description differ in {min(odd)!a}{changed}")
    for name, (shape, dtype) in expected.items():
        found = tensors[name]
        if tuple(found.shape) != shape or found.dtype != dtype:
            raise ValueError(
                f"{name} is of shape {tuple(found.shape)} and {found.dtype}, expected {shape} "
                f"and {dtype}{changed}"
            )
        if not found.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite")
