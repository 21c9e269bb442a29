"""The tasks by name, and what a task's data is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from rayff.config.errors import UserError, nearest
from rayff.config.registry import Registry, is_import_path
from rayff.data.digits import VALID_SIZE
from rayff.data.images import ImageSet, Split
from rayff.data.locations import is_uri
from rayff.data.order import sample
from rayff.data.streaming import StreamedSet

Splits = Mapping[Split, ImageSet | StreamedSet]
"""The images of each split by its name."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Metadata of a built-in task: classes, channels, files and recipe."""

    name: str
    """Its name for `--task`."""
    class_names: tuple[str, ...]
    """Names of the classes, in the order of the labels."""
    image_channels: int
    """1 for grey images, 3 for colour."""
    valid_size: int
    """Images held out of the training images, to choose the classifier on."""
    folders: tuple[str, ...] = ()
    """Names of the folders that are searched for Parquet files, the first match wins."""
    torchvision: str | None = None
    """Class in `torchvision.datasets` that reads and downloads it; None: it needs no files."""
    recipe: Mapping[str, int | float] = field(default_factory=dict)
    """The task's own defaults of the run's recipe, where they differ from the paper's."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskData:
    """A task's images, in three disjoint splits."""

    name: str
    """Name of the task, or of the folder that a path led to."""
    class_names: tuple[str, ...]
    """Names of the classes, in the order of the labels."""
    train: ImageSet | StreamedSet
    """The images that the network learns from."""
    valid: ImageSet | StreamedSet
    """The images that the classifier is chosen on: the same ones in every run."""
    test: ImageSet | StreamedSet
    """The images that the final accuracy is measured on."""
    original_sizes: str | None = None
    """Width and height of the images before they were resized, in words; None where unknown."""
    notes: tuple[str, ...] = ()
    """What was guessed, mapped, resized or left out, a sentence each."""

    @classmethod
    def empty(
        cls, name: str, class_names: tuple[str, ...], image_channels: int, image_size: int
    ) -> TaskData:
        """Return a task without images, for what needs classes and their shape alone."""
        nothing = ImageSet.empty(image_channels, image_size)
        return cls(name=name, class_names=class_names, train=nothing, valid=nothing, test=nothing)

    @property
    def splits(self) -> dict[Split, ImageSet | StreamedSet]:
        """The images of each split by its name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_channels(self) -> int:
        """1 for grey images, 3 for colour."""
        return self.train.image_shape[0]

    @property
    def image_size(self) -> int:
        """Pixels a side of the images."""
        return self.train.image_shape[-1]

    def sample(self, limit: int | None) -> TaskData:
        """Return at most `limit` images of each split, each class in proportion."""

        def some(images: ImageSet | StreamedSet) -> ImageSet | StreamedSet:
            few = limit is not None and limit < len(images)
            return images.take(sample(images.labels, limit)) if few else images

        return replace(self, train=some(self.train), valid=some(self.valid), test=some(self.test))

    @cached_property
    def fingerprint(self) -> str:
        """A number that changes with classes, labels or images, of which some are sampled."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for split in self.splits.values():
            digest.update(repr((len(split), *split.image_shape)).encode())
            digest.update(split.labels.tobytes())
            digest.update(split.some().tobytes())
            if isinstance(split, StreamedSet):  # its order follows the blocks of the files
                digest.update(repr(split.order).encode())
        return digest.hexdigest()

    def describe(self) -> list[str]:
        """Return what was read in a few lines: images, sizes, channels, classes, notes."""
        parts = [f"{len(split):,} {name}" for name, split in self.splits.items()]
        size = f"{self.image_size}x{self.image_size}"
        sizes = self.original_sizes or size
        kind = "grey" if self.image_channels == 1 else "colour"
        counts = np.bincount(self.train.labels, minlength=self.num_classes)
        least, most = int(counts.min()), int(counts.max())
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        return [
            f"data: {', '.join(parts)} images of {sizes} pixels in {kind}"
            f"{'' if sizes == size else f', now {size}'}; {self.num_classes:,} classes "
            f"with {each} training images each",
            *(f"note: {note}" for note in self.notes),
        ]


_TEN_DIGITS = tuple("0123456789")

TASKS: Registry[Any] = Registry("task", "--task")
"""Tasks by name; by import path a function without arguments that returns TaskData."""
for _task in (
    Task(
        name="digits",
        class_names=_TEN_DIGITS,
        image_channels=1,
        valid_size=VALID_SIZE,
        recipe={"batch_size": 16, "lr": 0.012, "lr_min": 0.0003, "epochs": 6},
    ),
    Task(
        name="mnist",
        class_names=_TEN_DIGITS,
        image_channels=1,
        valid_size=10_000,
        folders=("mnist",),
        torchvision="MNIST",
    ),
    Task(
        name="fmnist",
        class_names=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        image_channels=1,
        valid_size=10_000,
        folders=("fmnist", "fashion_mnist"),
        torchvision="FashionMNIST",
    ),
    Task(
        name="cifar10",
        class_names=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
        image_channels=3,
        valid_size=5_000,
        folders=("cifar10",),
        torchvision="CIFAR10",
    ),
    Task(
        name="cifar100",
        class_names=tuple(
            "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy "
            "bridge bus butterfly camel can castle caterpillar cattle chair chimpanzee clock "
            "cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish "
            "forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion "
            "lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange "
            "orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine "
            "possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
            "snail snake spider squirrel streetcar sunflower sweet_pepper table tank "
            "telephone television tiger tractor train trout tulip turtle wardrobe whale "
            "willow_tree wolf woman worm".split()
        ),
        image_channels=3,
        valid_size=5_000,
        folders=("cifar100",),
        torchvision="CIFAR100",
    ),
):
    TASKS.add(_task.name, _task)


def task_recipe(task: str) -> Mapping[str, int | float]:
    """Return the task's own defaults of the recipe; a path has none.

    Raises:
        UserError: `task` is neither a known name nor a path.
    """
    known = None if is_import_path(task) else known_task(task)
    return dict(known.recipe) if known else {}


def known_task(task: str) -> Task | None:
    """Return the task of that name, or None for a path.

    Raises:
        UserError: `task` is neither a known name nor a path.
    """
    if task in TASKS:
        found: Task = TASKS.load(task)
        return found
    separators = {os.sep, os.altsep or os.sep}
    if is_uri(task) or separators & set(task) or os.path.isdir(task) or task in (".", "~"):
        return None
    raise UserError(
        f"there is no task {task!r}{nearest(task, TASKS.names)}: the tasks are "
        f"{', '.join(TASKS.names)}; a folder or URI of images works too, and "
        "package.module:function"
    )
