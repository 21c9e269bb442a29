"""The run directory: everything that one training leaves behind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor

from rayff.baselines.model import Backpropagation, Classifier, EndToEnd
from rayff.config.errors import UserError
from rayff.config.recipe import Method
from rayff.config.text import is_plain
from rayff.config.train_config import TrainConfig
from rayff.kernels.precision import DTYPES
from rayff.learning.chain import Chain, ForwardForward
from rayff.learning.optimizers import is_parameter
from rayff.models.architecture import IMAGE_SIZE, Architecture
from rayff.runs.files import is_aside, write_atomically

CONFIG = "config.json"
SEARCH = "search.json"
"""The file of a search's folder that says what is searched."""
TRIALS = "trials"
"""The folder of a search that holds the run directories of its trials."""


@dataclass(frozen=True)
class RunDirectory:
    """A folder with config.json, metrics, checkpoints/, model.safetensors, architecture.json."""

    path: Path

    @property
    def name(self) -> str:
        """What the run is called beside others: a trial by its search too."""
        path = Path(os.path.abspath(self.path))
        return f"{path.parents[1].name}/{path.name}" if path.parent.name == TRIALS else path.name

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def check_new(self) -> None:
        """Raise a UserError where the folder already holds something."""
        try:
            is_file = self.path.exists() and not self.path.is_dir()
            is_empty = is_file or not self.path.exists() or not any(self._holdings())
        except OSError as error:
            raise UserError(
                f"--run-dir {self.path} cannot be read: {error.strerror}; name another folder"
            ) from error
        if is_file:
            raise UserError(f"--run-dir {self.path} is a file; name a folder")
        if (self.path / SEARCH).is_file():
            raise UserError(
                f"--run-dir {self.path} holds a search: go on with it by python -m rayff.tune "
                f"--run-dir {self.path} --resume, or name another folder"
            )
        if not is_empty:
            raise UserError(
                f"--run-dir {self.path} is not empty: add --resume to go on with the run in it, "
                "or name another folder"
            )

    def _holdings(self) -> Iterator[Path]:
        """Yield what is in the folder, but for files that a run did not get to finish."""
        return (path for path in self.path.iterdir() if not is_aside(path))

    def create(self, run: TrainConfig) -> None:
        """Make the folder and write config.json, which `--config` and `--resume` read.

        It does not name the folder, so that it may be moved and its configuration used again.
        """
        config = {key: value for key, value in run.to_dict().items() if key != "run_dir"}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path / CONFIG, json.dumps(config, indent=2).encode() + b"\n")
        except OSError as error:
            raise UserError(
                f"--run-dir {self.path} cannot be written: {error.strerror}; name another folder"
            ) from error

    def read_config(self) -> TrainConfig:
        """Return the run that is in the folder."""
        if not self.path.is_dir():
            raise UserError(f"there is no run directory {self.path}")
        config = self.path / CONFIG
        if not config.is_file():  # also a pipe, which would be waited for
            raise UserError(f"{self.path} is no run directory: it has no config.json")
        return read_config(config)

    def export_model(
        self,
        architecture: Architecture,
        states: Mapping[int, NDArray[np.uint8]],
        *,
        window: tuple[int, int],
        class_names: tuple[str, ...],
        precision: str,
        method: Method = "ff",
    ) -> None:
        """Write model.safetensors and architecture.json from the layers of a snapshot.

        The first holds what was learnt alone, `layers.N.weight` for layer N; the second the
        network, the SIP window and the names of the classes.
        """
        weights = {
            f"layers.{index}.{name}": value
            for index in sorted(states)
            for name, value in load(states[index].tobytes()).items()
            if is_parameter(name)
        }
        write_atomically(self.path / "model.safetensors", save(weights))
        description = {
            "architecture": architecture.to_dict(),
            "sip_window": window,
            "class_names": class_names,
            "precision": precision,
            "method": method,
        }
        write_atomically(
            self.path / "architecture.json", json.dumps(description, indent=1).encode() + b"\n"
        )

    def load_model(self) -> Classifier:
        """Return the trained network, on the CPU.

        Raises:
            UserError: there is no model yet, or its files are damaged.
        """
        self.read_config()
        description, weights = self.path / "architecture.json", self.path / "model.safetensors"
        if not (description.exists() and weights.exists()):
            raise UserError(
                f"{self.path} holds no trained model yet: its first checkpoint was not reached; "
                "go on with --resume"
            )
        data = read_json(description)
        for name in ("architecture", "sip_window", "class_names", "precision"):
            if not isinstance(data, dict) or name not in data:
                raise UserError(
                    f"the model in {self.path} is damaged: {description.name} lacks {name!r}; "
                    "write it anew with --resume"
                )
        try:
            architecture = Architecture.from_dict(data["architecture"])
            first, last = data["sip_window"]
            class_names = data["class_names"]
            dtype = DTYPES[data["precision"]]
            method = data.get("method", "ff")
            if method not in get_args(Method):
                raise ValueError(f"no network learns by {method!r}")
            tensors = load_file(weights)
            _check_weights(architecture, method, tensors)
            network: Chain | Backpropagation = (
                Chain.build(architecture, dtype=dtype)
                if method == "ff"
                else Backpropagation(architecture, deep_supervision=method == "bp-deepsup")
            )
            network.load_state_dict(tensors)
        except (KeyError, OSError, TypeError, ValueError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the model in {self.path} is damaged: {reason}; write it anew with --resume"
            ) from error
        if (
            not type(first) is type(last) is int
            or not 0 <= first <= last < architecture.num_classifiers(method)
            or type(class_names) is not list
            or len(class_names) != architecture.num_classes
            or not all(is_plain(name) for name in class_names)
        ):
            raise UserError(
                f"{description} is damaged: its window or class names do not fit; write it anew "
                "with --resume"
            )
        window, names = (first, last), tuple(class_names)
        if isinstance(network, Chain):
            return ForwardForward(network, window, names).eval()
        return EndToEnd(network, window, names, dtype).eval()


def _check_weights(
    architecture: Architecture, method: Method, tensors: Mapping[str, Tensor]
) -> None:
    """Raise a ValueError where the weights are not those of a whole network for images.

    It comes before the network is made, which would take the memory that a description claims.
    """
    first = architecture[0]
    if (first.index, first.in_size) != (0, IMAGE_SIZE) or first.in_channels not in (1, 3):
        raise ValueError(
            f"its first layer takes {first.in_channels} channels of {first.in_size}x"
            f"{first.in_size} pixels, which are no images"
        )
    shapes = {
        f"layers.{layer.index}.{name}": shape
        for layer, own in zip(
            architecture.layers, architecture.parameter_shapes(method), strict=True
        )
        for name, shape in own.items()
    }
    if odd := shapes.keys() ^ tensors.keys():
        raise ValueError(f"weights and description differ in {min(odd)!a}")
    for name, shape in shapes.items():
        found = tensors[name]
        if tuple(found.shape) != shape or found.dtype != torch.float32:
            raise ValueError(
                f"{name} is of shape {tuple(found.shape)} and {found.dtype}, expected {shape} "
                "and torch.float32"
            )
        if not found.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite")


def read_json(path: Path) -> Any:
    """Return the JSON in a file; UserError where it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def read_config(path: Path) -> TrainConfig:
    """Return the run that a JSON file describes."""
    return TrainConfig.from_dict(read_json(path), str(path))
