"""Evaluation of a trained network: accuracies, confusion matrix and mistakes; without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rayff.config.errors import UserError
from rayff.config.train_config import Device
from rayff.data.images import ImageSet, Split
from rayff.data.tasks import TaskData, load_task
from rayff.engine.prediction import pick_device
from rayff.learning.classifier import Classifier
from rayff.runs.model_file import read_model
from rayff.runs.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a network classifies the images of one split; accuracies are in percent."""

    accuracy: float
    """With the summed logits of the window."""
    layer_accuracy: tuple[float, ...]
    """Of each layer's own logits."""
    window: tuple[int, int]
    """First and last layer of the sum."""
    confusion: NDArray[np.int64]
    """Images by true class (row) and predicted class (column), (C, C)."""
    class_names: tuple[str, ...]
    num_images: int
    mistakes: tuple[Mistake, ...] = ()
    """Those with the most probable wrong class, `num_mistakes` at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mistake:
    """An image that was taken for another class."""

    image: NDArray[np.uint8]
    """(K, 32, 32)."""
    true: int
    predicted: int
    probability: float
    """Of the predicted class."""


def evaluate(
    run_dir: Path,
    *,
    data_dir: Path | None = None,
    split: Split = "test",
    prune: bool = True,
    device: Device = "auto",
    batch_size: int = 256,
    limit: int | None = None,
    num_mistakes: int = 0,
) -> Evaluation:
    """Evaluate the network of a run on a split of its task, in this process.

    Args:
        run_dir: the run directory.
        data_dir: where the task's data lies; by default where the run had it.
        split: test, valid or train.
        prune: classify with the SIP window; otherwise with the sum of all layers.
        device: auto, cpu or cuda.
        batch_size: images at a time; it changes memory and speed alone.
        limit: images to classify at most, the first ones; None for all.
        num_mistakes: mistakes to return with their images, at most.

    Raises:
        UserError: no usable model or data, or a model that does not fit the data.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size must be 1 or more, not {batch_size}")
    where = pick_device(device)
    directory = RunDirectory(Path(run_dir))
    config = directory.read_config()
    model = read_model(directory.path)
    folder = data_dir or config.data_dir
    data = load_task(
        config.task, data_dir=None if folder is None else Path(folder), download=config.download
    )
    _check_fits(model, data, directory.path)
    if split not in data.splits:
        raise UserError(f"--split {split!r} is unknown; known are {', '.join(data.splits)}")
    chosen = data.splits[split].first(limit)
    images, labels = chosen.images, chosen.labels
    window = model.window if prune else (0, model.num_classifiers - 1)
    by_layer, logits = classify(model.to(where), images, window, batch_size)
    summed = logits.argmax(axis=1)
    return Evaluation(
        accuracy=_percent(summed == labels),
        layer_accuracy=tuple(_percent(layer == labels) for layer in by_layer),
        window=window,
        confusion=confusion_matrix(labels, summed, len(data.class_names)),
        class_names=data.class_names,
        num_images=len(labels),
        mistakes=tuple(surest_mistakes(chosen, logits, num_mistakes)),
    )


def classify(
    model: Classifier, images: NDArray[np.uint8], window: tuple[int, int], batch_size: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the classes that each layer alone chooses, (L, N), and the window's logits, (N, C).

    `images` are (N, K, 32, 32).
    """
    device = next(model.parameters()).device
    first, last = window
    by_layer, logits = [], []
    for start in range(0, len(images), batch_size):
        batch = torch.tensor(images[start : start + batch_size], device=device)
        logits_by_layer = model.logits(batch)
        by_layer.append(logits_by_layer.argmax(dim=2).cpu().numpy())
        logits.append(logits_by_layer[first : last + 1].sum(dim=0).float().cpu().numpy())
    return np.concatenate(by_layer, axis=1), np.concatenate(logits)


def surest_mistakes(
    images: ImageSet, logits: NDArray[np.float32], limit: int
) -> Iterator[Mistake]:
    """Yield the wrongly classified images, that with the most probable wrong class first.

    `logits` are (N, C).
    """
    probabilities = torch.from_numpy(logits).softmax(dim=1).numpy()
    predicted = logits.argmax(axis=1)
    wrong = np.flatnonzero(predicted != images.labels)
    sureness = probabilities[wrong, predicted[wrong]]
    for row in wrong[np.argsort(-sureness, kind="stable")[:limit]]:
        yield Mistake(
            image=images.images[row],
            true=int(images.labels[row]),
            predicted=int(predicted[row]),
            probability=float(probabilities[row, predicted[row]]),
        )


def confusion_matrix(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int
) -> NDArray[np.int64]:
    """Count the images by true class (row) and predicted class (column)."""
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def most_confused(confusion: NDArray[np.int64], limit: int) -> list[tuple[int, int, int]]:
    """Return (true class, predicted class, images) of the commonest mistakes, most images first.

    Of equally common ones the lower classes come first; mistakes that never happened are left
    out.
    """
    mistakes = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
    pairs = (divmod(int(place), len(confusion)) for place in order)
    return [(i, j, int(mistakes[i, j])) for i, j in pairs if mistakes[i, j]]


def _check_fits(model: Classifier, data: TaskData, path: Path) -> None:
    """Raise a UserError where network and data have other classes or channels."""
    if model.class_names != data.class_names:
        raise UserError(
            f"the network in {path} knows {_named(model.class_names)}, but the task "
            f"{data.name!r} has {_named(data.class_names)}: evaluate on the data it was trained on"
        )
    channels = model.architecture.image_channels
    if channels != data.image_channels:
        raise UserError(
            f"the network in {path} takes images of {channels} channels, but those of the task "
            f"{data.name!r} have {data.image_channels}: evaluate on the data it was trained on"
        )


def _named(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:3])
    return f"{len(classes)} classes ({shown}{', ...' if len(classes) > 3 else ''})"


def _percent(hits: NDArray[np.bool_]) -> float:
    return 100 * float(hits.mean())
