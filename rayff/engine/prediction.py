"""Predictions for image files by a trained network; without Ray and without its training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rayff.config.errors import UserError
from rayff.config.train_config import Device
from rayff.data.images import ImageFormat, read_image
from rayff.kernels.precision import configure_torch
from rayff.learning.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The predicted class of one image."""

    file: str
    class_name: str
    probability: float
    layers_used: int
    layers: int
    """Of the whole network."""


def predict(
    model: Classifier, files: Sequence[str], early_exit: float | None = None
) -> Iterator[Prediction]:
    """Classify image files one after the other.

    Raises:
        UserError: a file is missing or is no image; before the first answer.
    """
    channels, size, _ = model.architecture.image_shape
    form = ImageFormat(channels, size, model.resize)
    device = next(model.parameters()).device
    images = [torch.tensor(read_image(Path(file), form), device=device) for file in files]
    for file, image in zip(files, images, strict=True):
        if early_exit is None:
            probabilities = model.probabilities(image[None])[0]
            layers_used = model.depth
        else:
            probabilities, layers_used = model.early_exit(image, early_exit)
        best = int(probabilities.argmax())
        yield Prediction(
            file=file,
            class_name=model.class_names[best],
            probability=float(probabilities[best]),
            layers_used=layers_used,
            layers=len(model.architecture),
        )


def pick_device(name: Device) -> torch.device:
    """Return the device of that name, with torch configured; auto is a GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    configure_torch()
    return torch.device(name)
