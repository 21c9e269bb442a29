"""Load a task: find its files, map its classes, choose its splits, decode its images."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rayff.config.activity import activity
from rayff.config.errors import UserError
from rayff.config.registry import is_import_path
from rayff.config.train_config import Resize, TrainConfig
from rayff.data.classes import ClassMap, Labels, RawLabels, map_classes
from rayff.data.columns import Choice
from rayff.data.digits import ORIGINAL_SIZES, read_digits
from rayff.data.images import ImageFormat, ImageSet, Split, Survey
from rayff.data.layouts import Layout, contents, find_layout
from rayff.data.locations import absolute, file_system, is_uri
from rayff.data.memory import memory_bytes
from rayff.data.order import Indices, sample
from rayff.data.reading import ColourFoundError, looks_grey, read_images
from rayff.data.sources import Location, Source
from rayff.data.splits import hold_out, split_rows, without_unlabelled
from rayff.data.streaming import StreamedSet, streamed
from rayff.data.tasks import TASKS, Task, TaskData, known_task
from rayff.data.torchvision_files import read_torchvision, torchvision_folder
from rayff.models.zoo import IMAGE_SIZE, default_image_size

DEFAULT_DOWNLOAD_DIR = "~/.cache/rayff"
"""Where `--download` puts the data when no folder is given."""

STREAMED_SHARE = 0.5
"""Of the free memory: images that would take more stay in their files."""

PREFERRED_LABELS = ("label", "fine_label")
"""Names of the label column in the files of a named task."""

_CONFIGS = ("plain_text", "default")
"""Folders in clones of data sets from Hugging Face."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which data a run reads, and how."""

    task: str
    """A known name, a folder or URI of images, or package.module:function."""
    data_dir: str | None = None
    """Where the data of a named task lies, or is downloaded to."""
    download: bool = False
    """Fetch missing files with torchvision."""
    image_size: int | None = None
    """Pixels a side; None for `default_size`."""
    default_size: int = IMAGE_SIZE
    """Of the network."""
    channels: int | None = None
    """1 or 3; None for those of the task, or of the images of a folder."""
    resize: Resize = "crop"
    """What happens to images that are not square."""
    choice: Choice = field(default_factory=Choice)
    """Columns that the user named."""
    limit: int | None = None
    """Images of each split at most."""
    stream: bool | None = None
    """Leave the images in their files; None where they would take much of the free memory."""
    cached: bool = True
    """Recall images that were decoded before, and keep those that take long."""

    @property
    def size(self) -> int:
        """Pixels a side of the images."""
        return self.image_size or self.default_size


def data_options(config: TrainConfig) -> DataOptions:
    """Return the options of a run's data; a run of another method reads the same."""
    return DataOptions(
        task=config.task,
        data_dir=config.data_dir,
        download=config.download,
        image_size=config.image_size,
        default_size=default_image_size(config.arch),
        resize=config.resize,
        choice=Choice(image=config.image_column, label=config.label_column),
        limit=config.limit,
        channels=config.image_channels,
        stream=config.stream or None,
    )


def load_task(options: DataOptions) -> TaskData:
    """Load a task's three splits.

    Raises:
        UserError: the name is unknown, the data is not there, a file is not as it should be, or an
            option is of no use for such a task.
    """
    with activity(f"reading {options.task}"):
        return _load(options)


def _load(options: DataOptions) -> TaskData:
    if is_import_path(options.task):
        return _call(options)
    known = known_task(options.task)
    if known is None:
        return _load_path(options)
    if known.torchvision is None:
        _refuse(options, "has no columns", "image_column", "label_column")
        _refuse(options, "has no files", "stream")
        splits = read_digits(ImageFormat(options.channels or known.image_channels, options.size))
        whole = _task_data(known.name, known.class_names, splits, ORIGINAL_SIZES)
        return whole.sample(options.limit)
    if options.data_dir is None and not options.download:
        raise UserError(
            f"the task {known.name!r} needs its data: pass --data-dir DIR with a copy of it, or "
            "let rayff train --download fetch it"
        )
    return _load_named(known, known.torchvision, options)


def _refuse(options: DataOptions, why: str, *names: str) -> None:
    """Raise a UserError for an option that would be ignored."""
    values = {
        "data_dir": options.data_dir,
        "download": options.download,
        "image_column": options.choice.image,
        "label_column": options.choice.label,
        "stream": options.stream,
        "resize": options.resize != "crop",
    }
    for name in names:
        if values[name]:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: --task {options.task} {why}; leave {flag} out")


def _call(options: DataOptions) -> TaskData:
    """Return the data of a user's function."""
    task = options.task
    _refuse(
        options,
        "is a function that loads its data itself",
        *("data_dir", "download", "image_column", "label_column", "stream", "resize"),
    )
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
    _check_splits(data, task)
    if options.channels not in (None, data.image_channels):
        raise UserError(
            f"--image-channels {options.channels}: --task {task} returned images of "
            f"{data.image_channels}; convert them there, or leave the option out"
        )
    if options.image_size not in (None, data.image_size):
        raise UserError(
            f"--image-size {options.image_size}: --task {task} returned images of "
            f"{data.image_size}x{data.image_size} pixels; resize them there, or leave the option "
            "out"
        )
    # the function may keep its own, which are not to be released
    train, valid, test = map(copy.copy, (data.train, data.valid, data.test))
    return replace(data, train=train, valid=valid, test=test).sample(options.limit)


def _check_splits(data: TaskData, task: str) -> None:
    """Raise a UserError where splits of a user's function do not fit the classes or each other."""
    for name, split in data.splits.items():
        if not len(split):
            raise UserError(f"--task {task} returned no {name} images: every split needs one")
        if split.image_shape != data.train.image_shape:
            raise UserError(
                f"--task {task} returned {name} images of shape {split.image_shape}, and train "
                f"images of {data.train.image_shape}: bring all of them to one shape"
            )
        least, most = split.labels.min(), split.labels.max()
        if least < 0 or most >= data.num_classes:
            raise UserError(
                f"--task {task} returned {name} labels from {least} to {most} for "
                f"{data.num_classes} class names: count them from 0, in the order "
                "of class_names"
            )


def _load_named(task: Task, class_name: str, options: DataOptions) -> TaskData:
    """Search the data folder for files of any layout, then for torchvision's."""
    data_dir = options.data_dir or DEFAULT_DOWNLOAD_DIR
    root = _location(data_dir, "--data-dir")
    places = [*(root / name for name in task.folders), root]
    for place in places:
        if layout := find_layout(place, subfolders=(*_CONFIGS, *task.folders)):
            return _read(layout, place, task.name, options, task)
    _refuse(options, "was not found in tables", "image_column", "label_column", "stream")
    folder = Path(absolute(data_dir, "--data-dir"))
    files = torchvision_folder(class_name, folder)
    if not options.download and not os.path.isdir(files):
        raise UserError(
            f"no data of the task {task.name!r}: looked for train.parquet and test.parquet (or "
            f"their shards), and for train/<class>/ and test/<class>/, in "
            f"{', '.join(place.shown for place in places)}, and for torchvision's files in "
            f"{files}; put them there, pass another --data-dir, or let rayff train --download "
            "fetch them"
        )
    form = ImageFormat(options.channels or task.image_channels, options.size, options.resize)
    survey = Survey()
    train, test = read_torchvision(
        class_name,
        folder,
        form=form,
        num_classes=task.num_classes,
        download=options.download,
        survey=survey,
    )
    kept, held_out = hold_out(len(train), task.valid_size, str(files))
    splits = train.take(kept), train.take(held_out), test
    whole = _task_data(task.name, task.class_names, splits, survey.sizes, survey.notes())
    return whole.sample(options.limit)


def _load_path(options: DataOptions) -> TaskData:
    _refuse(options, "is a folder itself", "data_dir", "download")
    folder = _location(options.task, "--task")
    layout = find_layout(folder)
    if layout is None:
        if not folder.listing():
            raise UserError(
                f"there is no folder {folder.shown}, or nothing in it: give the folder that holds "
                "train.parquet and test.parquet, or train/<class>/ and test/<class>/ with image "
                "files"
            )
        raise UserError(
            f"{folder.shown} is no data set: expected train.parquet and test.parquet (or shards), "
            "train/<class>/ and test/<class>/ with image files, or Parquet with a column 'split'; "
            f"it holds {contents(folder)}"
        )
    return _read(layout, folder, folder.name, options, None)


def _location(folder: str, flag: str) -> Location:
    files, path = file_system(folder, flag)
    shown = folder.partition("?")[0] if is_uri(folder) else folder
    return Location(files=files, path=path, shown=shown.rstrip("/") or "/")


def _read(
    layout: Layout,
    folder: Location,
    name: str,
    options: DataOptions,
    task: Task | None,
) -> TaskData:
    """Read the splits of a layout."""
    preferred = PREFERRED_LABELS if task else ()
    sources: dict[Split, Source] = {}
    notes: dict[str, None] = dict.fromkeys(layout.notes)
    for split, reader in layout.readers.items():
        found = reader(options.choice, preferred)
        if found is not None:
            sources[split] = found[0]
            notes |= dict.fromkeys(found[1])
    if "train" not in sources:
        raise UserError(
            f"{folder.shown} has no train split: expected train.parquet (or shards) or "
            f"train/<class>/; it holds {contents(folder)}"
        )
    sources, unlabelled = without_unlabelled(sources)
    if task is not None and not sources.keys() & {"test", "valid"}:
        raise UserError(
            f"{folder.shown} has no test split, which the task {task.name!r} has: add it, or give "
            f"the folder itself to --task; it holds {contents(folder)}"
        )
    raw = {
        split: RawLabels(values=source.labels, names=source.names, place=source.place)
        for split, source in sources.items()
    }
    classes = map_classes(raw, task.class_names if task else None)
    rows, held_out = split_rows(sources, task.valid_size if task else None, folder.shown)
    picked = {
        split: (source, chosen[sample(classes.labels[source][chosen], options.limit)])
        for split, (source, chosen) in rows.items()
    }
    channels = options.channels or (task.image_channels if task else None)
    grey = channels is None and looks_grey(sources.values())
    form = ImageFormat(channels or (1 if grey else 3), options.size, options.resize, grey)
    number = sum(len(chosen) for _, chosen in picked.values())
    images: Mapping[Split, ImageSet | StreamedSet]
    if is_streamed(options, number, form):
        images, survey = _stream(sources, classes, picked, form)
        sampled = ", in a sample"
        notes["images stay in their files, and are decoded while they are used"] = None
    else:
        images, survey = _decode(sources, classes, picked, form, cached=options.cached)
        sampled = ""
    changes = (f"{note}{sampled}" for note in survey.notes())
    return TaskData(
        name=name,
        class_names=classes.names,
        train=images["train"],
        valid=images["valid"],
        test=images["test"],
        original_sizes=survey.sizes,
        notes=(*notes, *unlabelled, *held_out, *classes.notes, *changes),
    )


def is_streamed(options: DataOptions, number: int, form: ImageFormat) -> bool:
    """Return whether so many images stay in their files: as asked, or where memory is small."""
    if options.stream is not None:
        return options.stream
    return number * math.prod(form.shape) > STREAMED_SHARE * memory_bytes()[1]


def _stream(
    sources: Mapping[Split, Source],
    classes: ClassMap,
    picked: Mapping[Split, tuple[Split, Indices]],
    form: ImageFormat,
) -> tuple[dict[Split, StreamedSet], Survey]:
    """Return the rows of all splits in their files, and what a few of them are like."""
    found, survey = {}, Survey()
    for split, (origin, rows) in picked.items():
        labels = classes.labels[origin][rows]
        found[split] = streamed(sources[origin].take(rows), labels, form)
        survey.add(found[split].survey())
    return found, survey


def _decode(
    sources: Mapping[Split, Source],
    classes: ClassMap,
    picked: Mapping[Split, tuple[Split, Indices]],
    form: ImageFormat,
    *,
    cached: bool,
) -> tuple[dict[Split, ImageSet], Survey]:
    """Decode the rows of all splits, each file once; again in colour where not all are grey."""
    wanted = {
        origin: np.unique(np.concatenate([r for o, r in picked.values() if o == origin]))
        for origin in dict.fromkeys(origin for origin, _ in picked.values())
    }
    chosen = {origin: sources[origin].take(rows) for origin, rows in wanted.items()}
    survey = Survey()
    images: dict[Split, ImageSet] = {}
    try:
        for origin, source in chosen.items():
            labels: Labels = classes.labels[origin][wanted[origin]]
            images[origin], part = read_images(source, labels, form, cached=cached)
            survey.add(part)
    except ColourFoundError:
        colour = replace(form, channels=3, grey_only=False)
        return _decode(sources, classes, picked, colour, cached=cached)
    return {
        split: images[origin].take(np.searchsorted(wanted[origin], rows))
        if len(rows) < len(wanted[origin])
        else images[origin]
        for split, (origin, rows) in picked.items()
    }, survey


def _task_data(
    name: str,
    class_names: tuple[str, ...],
    splits: tuple[ImageSet, ImageSet, ImageSet],
    original_sizes: str,
    notes: Sequence[str] = (),
) -> TaskData:
    train, valid, test = splits
    return TaskData(
        name=name,
        class_names=class_names,
        train=train,
        valid=valid,
        test=test,
        original_sizes=original_sizes,
        notes=tuple(notes),
    )
