"""Evaluation of a trained network: readouts, confusion matrix and mistakes; without Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayff.config.activity import activity
from rayff.config.errors import UserError
from rayff.config.train_config import Device
from rayff.data.images import ImageSet, Split
from rayff.data.loading import data_options, load_task
from rayff.data.streaming import StreamedSet
from rayff.data.tasks import TaskData
from rayff.engine.prediction import pick_device
from rayff.learning.calibration import EarlyExit, Reliability, early_exits, reliability
from rayff.learning.classifier import Classifier
from rayff.learning.readout import ReadoutName
from rayff.runs.model_file import read_model
from rayff.runs.run_directory import RunDirectory

THRESHOLDS = (*(step / 100 for step in range(100)), 0.995, 0.999, 1.0)
"""Of early exit, in an evaluation."""


@dataclass(frozen=True, kw_only=True)
class ReadoutScore:
    """How one readout classifies the images, and what its probabilities are worth."""

    accuracy: float
    """In percent."""
    temperature: float
    reliability: Reliability
    """Of its probabilities."""
    uncalibrated: Reliability
    """The same with a temperature of 1."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a network classifies the images of one split; accuracies are in percent."""

    accuracy: float
    """With the readout."""
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
    readout: ReadoutName = "window"
    """What the confusion matrix and the mistakes are of."""
    readouts: Mapping[ReadoutName, ReadoutScore] = field(default_factory=dict)
    """Of every readout that the network has."""
    calibrated: bool = False
    """Whether temperatures were fitted."""
    early_exits: Mapping[str, list[EarlyExit]] = field(default_factory=dict)
    """Of the window, at several thresholds, `calibrated` and `uncalibrated`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Mistake:
    """An image that was taken for another class."""

    image: NDArray[np.uint8]
    """(K, S, S)."""
    true: int
    predicted: int
    probability: float
    """Of the predicted class."""


def evaluate(
    run_dir: Path,
    *,
    data_dir: Path | None = None,
    split: Split = "test",
    readout: ReadoutName = "window",
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
        readout: window, last or fusion; what the confusion matrix and the mistakes are of.
        device: auto, cpu or cuda.
        batch_size: images at a time; it changes memory and speed alone.
        limit: images to classify at most, each class in proportion; None for all.
        num_mistakes: mistakes to return with their images, at most.

    Raises:
        UserError: no usable model or data, a model that does not fit the data, or one without
            the readout.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size must be 1 or more, not {batch_size}")
    where = pick_device(device)
    model = read_model(Path(run_dir))
    model.readout = readout
    data = load_data(Path(run_dir), model, data_dir=data_dir, limit=limit)
    if split not in data.splits:
        raise UserError(f"--split {split!r} is unknown; known are {', '.join(data.splits)}")
    chosen = data.splits[split]
    labels = chosen.labels
    with activity(f"classifying {split} images", len(labels)) as classifying:
        found = classify(model.to(where), chosen, batch_size, classifying.advance)
    scores = {
        name: _score(*of_readout, labels, model.temperature_of(name))
        for name, of_readout in found.readouts.items()
    }
    predicted, probability, _ = found.readouts[readout]
    return Evaluation(
        accuracy=scores[readout].accuracy,
        layer_accuracy=tuple(_percent(layer == labels) for layer in found.layers),
        window=model.window,
        confusion=confusion_matrix(labels, predicted, len(data.class_names)),
        class_names=data.class_names,
        num_images=len(labels),
        mistakes=tuple(surest_mistakes(chosen, predicted, probability, num_mistakes)),
        readout=readout,
        readouts=scores,
        calibrated=model.calibrated,
        early_exits=_early_exits(model, found.depths, labels),
    )


def load_data(
    run_dir: Path, model: Classifier, *, data_dir: Path | None = None, limit: int | None = None
) -> TaskData:
    """Return the data of a run's task, as its network takes it.

    Args:
        run_dir: the run directory.
        model: its network.
        data_dir: where the data lies; by default where the run had it.
        limit: images of each split at most, each class in proportion; None for all.

    Raises:
        UserError: the data is not there, damaged, or does not fit the network.
    """
    config = RunDirectory(run_dir).read_config()
    options = dataclasses.replace(
        data_options(config),
        image_size=model.architecture.image_size,
        # a sample need not hold the one image of colour among grey ones
        channels=config.image_channels if limit is None else model.architecture.image_channels,
        limit=limit,
    )
    if data_dir is not None:
        options = dataclasses.replace(options, data_dir=str(data_dir))
    data = load_task(options)
    _check_fits(model, data, run_dir)
    return data


Predictions = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]
"""The class of each image, its probability, and its probability with a temperature of 1."""


@dataclass(frozen=True)
class Classes:
    """What a network predicts for images: small arrays, whatever the number of classes."""

    layers: NDArray[np.int64]
    """Of each layer alone, (L, N)."""
    readouts: Mapping[ReadoutName, Predictions]
    """Of each readout, (N,) each."""
    depths: Predictions
    """Of the window's sum up to each of its layers, (D, N) each."""


def classify(
    model: Classifier,
    images: ImageSet | StreamedSet,
    batch_size: int,
    advance: Callable[[int], None] = lambda images: None,
) -> Classes:
    """Classify images with every layer, readout and depth.

    Args:
        model: the network.
        images: in order.
        batch_size: images at a time.
        advance: called after each batch with the number of its images.
    """
    device = next(model.parameters()).device
    first, last = model.window
    layers, depths = [], []
    readouts: dict[ReadoutName, list[list[NDArray[Any]]]] = {name: [] for name in model.readouts}
    temperatures = torch.tensor(model.temperatures, device=device)[:, None, None]
    for batch in image_batches(images, batch_size):
        logits = model.logits(torch.tensor(batch, device=device))
        layers.append(logits.argmax(dim=2).cpu().numpy())
        depths.append(_predictions(logits[first : last + 1].cumsum(dim=0), temperatures))
        for name, parts in readouts.items():
            temperature = torch.tensor(model.temperature_of(name), device=device)
            parts.append(_predictions(model.read_out(logits, name), temperature))
        advance(len(batch))
    return Classes(
        np.concatenate(layers, axis=1),
        {name: _joined(parts) for name, parts in readouts.items()},
        _joined(depths),
    )


def image_batches(images: ImageSet | StreamedSet, size: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the images in order, `size` at a time or fewer."""
    parts = [images.images] if isinstance(images, ImageSet) else images.parts()
    for part in parts:
        for start in range(0, len(part), size):
            yield part[start : start + size]


def _predictions(logits: Tensor, temperature: Tensor) -> list[NDArray[Any]]:
    """Return classes, probabilities and those with a temperature of 1, of (..., B, C)."""
    logits = logits.float()
    calibrated, raw = (logits / temperature).softmax(dim=-1), logits.softmax(dim=-1)
    tensors = (logits.argmax(dim=-1), calibrated.amax(dim=-1), raw.amax(dim=-1))
    return [tensor.cpu().numpy() for tensor in tensors]


def _joined(batches: Sequence[Sequence[NDArray[Any]]]) -> Predictions:
    classes, probability, raw = zip(*batches, strict=True)
    return (
        np.concatenate(classes, axis=-1),
        np.concatenate(probability, axis=-1),
        np.concatenate(raw, axis=-1),
    )


def _score(
    predicted: NDArray[np.int64],
    probability: NDArray[np.float32],
    raw: NDArray[np.float32],
    labels: NDArray[np.int64],
    temperature: float,
) -> ReadoutScore:
    correct = predicted == labels
    return ReadoutScore(
        accuracy=_percent(correct),
        temperature=temperature,
        reliability=reliability(probability, correct),
        uncalibrated=reliability(raw, correct),
    )


def _early_exits(
    model: Classifier, depths: Predictions, labels: NDArray[np.int64]
) -> dict[str, list[EarlyExit]]:
    predicted, probability, raw = depths
    first, last = model.window
    layers = [model.layers_computed(classifier) for classifier in range(first, last + 1)]
    correct = predicted == labels
    return {
        "calibrated": early_exits(probability, correct, layers, THRESHOLDS),
        "uncalibrated": early_exits(raw, correct, layers, THRESHOLDS),
    }


def surest_mistakes(
    images: ImageSet | StreamedSet,
    predicted: NDArray[np.int64],
    probability: NDArray[np.float32],
    limit: int,
) -> Iterator[Mistake]:
    """Yield the wrongly classified images, that with the most probable wrong class first.

    Args:
        images: with their labels.
        predicted: classes, (N,).
        probability: of those classes, (N,).
        limit: mistakes to yield at most.
    """
    wrong = np.flatnonzero(predicted != images.labels)
    rows = wrong[np.argsort(-probability[wrong], kind="stable")[:limit]]
    if not len(rows):
        return
    ascending = np.sort(rows)
    shown = np.concatenate([*image_batches(images.take(ascending), len(rows))])
    for row in rows:
        yield Mistake(
            image=shown[np.searchsorted(ascending, row)],
            true=int(images.labels[row]),
            predicted=int(predicted[row]),
            probability=float(probability[row]),
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
