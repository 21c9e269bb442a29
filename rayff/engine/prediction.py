"""Predictions for image files by a trained network; without Ray and without its training data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rayff.config.errors import UserError
from rayff.config.train_config import Device
from rayff.data.images import ImageFormat, Pixels, read_image
from rayff.kernels.precision import configure_torch
from rayff.learning.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The predicted class of one image."""

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
    form = image_format(model)
    for image in [read_image(Path(file), form) for file in files]:
        yield from classify_batch(model, image[None], early_exit)


def classify_batch(
    model: Classifier, images: Pixels, early_exit: float | None = None
) -> list[Prediction]:
    """Classify a batch of images, uint8 (B, K, S, S), on the model's device.

    Args:
        model: with the readout that is wanted.
        images: in the format of the model.
        early_exit: probability at which an image needs no further layer of the window; None for
            every layer of the readout.
    """
    batch = torch.tensor(images, device=next(model.parameters()).device)
    if early_exit is None:
        probabilities, layers = model.probabilities(batch), torch.full((len(batch),), model.depth)
    else:
        probabilities, layers = model.early_exit(batch, early_exit)
    best = probabilities.max(dim=1)
    return [
        Prediction(
            class_name=model.class_names[winner],
            probability=probability,
            layers_used=layers_used,
            layers=len(model.architecture),
        )
        for winner, probability, layers_used in zip(
            best.indices.tolist(), best.values.tolist(), layers.tolist(), strict=True
        )
    ]


def image_format(model: Classifier) -> ImageFormat:
    """Return what every image becomes for a model."""
    channels, size, _ = model.architecture.image_shape
    return ImageFormat(channels, size, model.resize)


def pick_device(name: Device) -> torch.device:
    """Return the device of that name, with torch configured; auto is a GPU where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; use --device cpu or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    configure_torch()
    return torch.device(name)
