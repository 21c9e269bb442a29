"""The tasks by name, and loading one: from Parquet, from torchvision's files, or from a path."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayff.config.errors import UserError, nearest
from rayff.config.registry import Registry, is_import_path
from rayff.data import parquet
from rayff.data.digits import VALID_SIZE, read_digits
from rayff.data.images import ImageSet, Split
from rayff.data.order import holdout
from rayff.data.torchvision_files import read_torchvision, torchvision_folder

DEFAULT_DOWNLOAD_DIR = Path("~/.cache/rayff")
"""Where `--download` puts the data when no folder is given."""

MAX_HELD_OUT = 10_000
"""Most images that are held out of a path task's training images; it is 10% otherwise."""


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
    train: ImageSet
    """The images that the network learns from."""
    valid: ImageSet
    """The images that the classifier is chosen on: the same ones in every run."""
    test: ImageSet
    """The images that the final accuracy is measured on."""

    @classmethod
    def empty(cls, name: str, class_names: tuple[str, ...], image_channels: int) -> TaskData:
        """Return a task without images, for what needs classes and channels alone."""
        nothing = ImageSet.empty(image_channels)
        return cls(name=name, class_names=class_names, train=nothing, valid=nothing, test=nothing)

    @property
    def splits(self) -> dict[Split, ImageSet]:
        """The images of each split by its name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_channels(self) -> int:
        """1 for grey images, 3 for colour."""
        return int(self.train.images.shape[1])


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
    known = None if is_import_path(task) else _known_task(task)
    return dict(known.recipe) if known else {}


def load_task(task: str, *, data_dir: Path | None = None, download: bool = False) -> TaskData:
    """Load a task's three splits.

    Args:
        task: a known name, or a path to a folder of image Parquet files.
        data_dir: where the data of a named task lies, or is downloaded to.
        download: fetch missing files with torchvision.

    Raises:
        UserError: the name is unknown, the data is not there, or a file is not as it should be.
    """
    if is_import_path(task):
        return _call(task)
    known = _known_task(task)
    if known is None:
        return _load_path(_expanded(task, "--task"))
    if known.torchvision is None:
        train, valid, test = read_digits()
    else:
        if data_dir is None and not download:
            raise UserError(
                f"the task {task!r} needs its data: pass --data-dir DIR with a copy of it, or "
                "let rayff train --download fetch it"
            )
        folder = _expanded(data_dir or DEFAULT_DOWNLOAD_DIR, "--data-dir")
        train, valid, test = _load_named(known, known.torchvision, folder, download)
    return TaskData(
        name=known.name, class_names=known.class_names, train=train, valid=valid, test=test
    )


def _known_task(task: str) -> Task | None:
    """Return the task of that name, or None for a path."""
    if task in TASKS:
        found: Task = TASKS.load(task)
        return found
    separators = {os.sep, os.altsep or os.sep}
    if separators & set(task) or os.path.isdir(task):
        return None
    raise UserError(
        f"there is no task {task!r}{nearest(task, TASKS.names)}: the tasks are "
        f"{', '.join(TASKS.names)}; a path to a folder of image Parquet files works too, and "
        "package.module:function"
    )


def _call(task: str) -> TaskData:
    """Return the data of a user's function."""
    function = TASKS.load(task)
    try:
        data = function()
    except UserError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"--task {task}: calling it failed ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(data, TaskData):
        raise UserError(f"--task {task} returned {type(data).__name__}: return a TaskData")
    return data


def _expanded(folder: str | Path, flag: str) -> Path:
    """Return the folder with its `~` replaced."""
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{flag} {folder}: there is no such home directory; write the folder's whole path"
        ) from error


def _load_named(
    task: Task, class_name: str, data_dir: Path, download: bool
) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Search `data_dir` for Parquet files, then for torchvision's, which may be downloaded."""
    places = [*(data_dir / name for name in task.folders), data_dir]
    for place in places:
        files = parquet.find_splits(place)
        if files:
            return _read_splits(
                files,
                place,
                channels=task.image_channels,
                num_classes=task.num_classes,
                valid_size=task.valid_size,
            )
    torchvision_files = torchvision_folder(class_name, data_dir)
    if not download and not os.path.isdir(torchvision_files):
        raise UserError(
            f"no data of the task {task.name!r}: looked for train.parquet and test.parquet (or "
            f"their shards) in {', '.join(str(place) for place in places)}, and for torchvision's "
            f"files in {torchvision_files}; put them there, pass another --data-dir, or let "
            "rayff train --download fetch them"
        )
    train, test = read_torchvision(
        class_name,
        data_dir,
        channels=task.image_channels,
        num_classes=task.num_classes,
        download=download,
    )
    return *_hold_out(train, task.valid_size, torchvision_files), test


def _load_path(folder: Path) -> TaskData:
    if not os.path.isdir(folder):  # unlike Path's, it says no to a name that is too long
        raise UserError(
            f"there is no folder {folder}: give the folder that holds train.parquet and "
            "test.parquet, or their shards"
        )
    files = parquet.find_splits(folder)
    _check_splits(files, folder)
    names = parquet.class_names(files["train"])
    if names is None:
        labels = [parquet.read_labels(split, None) for split in files.values()]
        num_classes = 1 + max(int(split.max()) for split in labels)
        names = tuple(str(label) for label in range(num_classes))
    train, valid, test = _read_splits(
        files,
        folder,
        channels=parquet.image_channels(files["train"]),
        num_classes=len(names),
        valid_size=None,
    )
    name = folder.resolve().name
    return TaskData(name=name, class_names=names, train=train, valid=valid, test=test)


def _read_splits(
    files: Mapping[str, list[Path]],
    folder: Path,
    *,
    channels: int,
    num_classes: int,
    valid_size: int | None,
) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Read the splits, and hold out `valid_size` images (or 10%) if none is for validation."""
    _check_splits(files, folder)
    read = {
        split: parquet.read_split(paths, channels=channels, num_classes=num_classes)
        for split, paths in files.items()
    }
    if "valid" in read:
        return read["train"], read["valid"], read["test"]
    if valid_size is None:
        valid_size = max(1, min(MAX_HELD_OUT, len(read["train"]) // 10))
    return *_hold_out(read["train"], valid_size, folder), read["test"]


def _check_splits(files: Mapping[str, list[Path]], folder: Path) -> None:
    missing = [split for split in ("train", "test") if split not in files]
    if missing:
        found = ", ".join(path.name for path in parquet.parquet_files(folder)) or "none"
        raise UserError(
            f"{folder} has no {' and no '.join(missing)} split: expected "
            f"{' and '.join(f'{split}.parquet' for split in missing)} (or shards), the Parquet "
            f"files there are: {found}"
        )


def _hold_out(train: ImageSet, valid_size: int, source: Path) -> tuple[ImageSet, ImageSet]:
    if len(train) <= valid_size:
        raise UserError(
            f"{source} has {len(train):,} training images, of which {valid_size:,} are to be held "
            "out for validation: give more, or a validation.parquet"
        )
    kept, held_out = holdout(len(train), valid_size)
    return train.take(kept), train.take(held_out)
