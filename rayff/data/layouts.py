"""Which files of a folder are the splits of a data set.

Known are Parquet files that are called by their split (in the folder, in `data`, or in a folder a
split), Parquet files with a column `split`, what `datasets` writes with save_to_disk, and folders
of image files, a folder for each split and in it one for each class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pyarrow import fs

from rayff.config.errors import UserError
from rayff.data.arrow_files import read_saved, saved_splits
from rayff.data.columns import Choice
from rayff.data.folders import left_out, read_class_folders
from rayff.data.images import SUFFIXES, Split
from rayff.data.parquet import read_source, split_words
from rayff.data.sources import Location, Source

SPLIT_OF_NAME: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "valid",
    "valid": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
"""The split that the name of a file or folder, or a word in the column `split`, announces."""

_FILE_NAME = re.compile(
    rf"(?P<prefix>{'|'.join(SPLIT_OF_NAME)})"
    r"(-(?P<shard>\d+)-of-(?P<total>\d+)(-[0-9a-f]+)?)?\.parquet"
)
_SHOWN = 8

Reader = Callable[[Choice, Sequence[str]], tuple[Source, tuple[str, ...]] | None]
"""Reads a split: the columns that the user named, and preferred names of the label column."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The splits that a folder holds, not read yet."""

    readers: Mapping[Split, Reader]
    notes: tuple[str, ...] = ()


def find_layout(folder: Location, subfolders: Iterable[str] | None = None) -> Layout | None:
    """Return the layout of a folder, or else that of its one subfolder that has any.

    Args:
        folder: where to look.
        subfolders: names of the subfolders to look into; None for all.

    Raises:
        UserError: a shard is missing, two sets of files claim the same split, or several
            subfolders hold data sets.
    """
    if found := _layout(folder):
        return found
    names = [info.base_name for info in _folders(folder)]
    inside = {
        name: layout
        for name in names
        if (subfolders is None or name in subfolders) and (layout := _layout(folder / name))
    }
    if len(inside) > 1:
        raise UserError(
            f"{folder.shown} holds several data sets: give the folder of one of them, such as "
            f"{' or '.join((folder / name).shown for name in [*inside][:_SHOWN])}"
        )
    for name, layout in inside.items():
        note = f"the data set is the one in {(folder / name).shown}"
        return Layout(readers=layout.readers, notes=(note, *layout.notes))
    return _classes_alone(folder) if subfolders is None else None


def contents(folder: Location) -> str:
    """Return what a folder holds, in words."""
    names = [
        info.base_name + ("/" if info.type == fs.FileType.Directory else "")
        for info in folder.listing()
    ]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more if names else "nothing"


def _layout(folder: Location) -> Layout | None:
    """Return the layout of the folder itself."""
    saved = saved_splits(folder)
    if saved is not None:
        return _saved(folder, saved)
    files = parquet_files(folder)
    by_name = _by_name(folder, files)
    if by_name:
        used = {file.path for of_split in by_name.values() for file in of_split}
        unused = [file.shown for file in files if file.path not in used]
        return Layout(
            readers={split: partial(_parquet, by_name[split]) for split in by_name},
            notes=left_out(unused, "no name of a split"),
        )
    return _by_column(files) or _image_folders(folder)


def _parquet(
    files: Sequence[Location],
    choice: Choice,
    preferred: Sequence[str],
    words: Sequence[str] | None = None,
) -> tuple[Source, tuple[str, ...]]:
    return read_source(files, choice, preferred, words)


def parquet_files(folder: Location) -> list[Location]:
    """Return every Parquet file in a folder and in its subfolder `data`, sorted by name."""
    return [
        place / info.base_name
        for place in (folder, folder / "data")
        for info in place.listing()
        if info.base_name.endswith(".parquet")
    ]


def _by_name(folder: Location, files: Sequence[Location]) -> dict[Split, list[Location]]:
    """Return the Parquet files of each split that names of files or folders announce, in order.

    Raises:
        UserError: a shard is missing, or two sets of files claim the same split.
    """
    sets: dict[Split, dict[tuple[str, ...], list[tuple[int, Location]]]] = {}
    for location in files:
        if match := _FILE_NAME.fullmatch(location.name):
            parent = location.path.rpartition("/")[0]
            key = (parent, match["prefix"], match["total"] or "")
            of_split = sets.setdefault(SPLIT_OF_NAME[match["prefix"]], {})
            of_split.setdefault(key, []).append((int(match["shard"] or 0), location))
    for info in _folders(folder):
        inside = folder / info.base_name
        split = SPLIT_OF_NAME.get(info.base_name.lower())
        names = [f.base_name for f in inside.listing() if f.base_name.endswith(".parquet")]
        if split and names:
            numbered = [(number, inside / name) for number, name in enumerate(names)]
            sets.setdefault(split, {})[(inside.path,)] = numbered
    order: tuple[Split, ...] = ("train", "valid", "test")
    return {split: _only_set(split, [*sets[split].values()]) for split in order if split in sets}


def _only_set(split: str, sets: list[list[tuple[int, Location]]]) -> list[Location]:
    """Return the files of the one set of shards, in order, after checking that it is whole."""
    files = [location for shards in sets for _, location in sorted(shards, key=lambda s: s[0])]
    numbers = sorted(shard for shards in sets for shard, _ in shards)
    if len(sets) > 1 or len(set(numbers)) < len(numbers):
        raise UserError(
            f"more than one set of files for the {split} split: "
            f"{', '.join(file.shown for file in files)}; keep one of them"
        )
    match = _FILE_NAME.fullmatch(files[0].name)
    total = int(match["total"] or 1) if match else 1
    there = [number for number in numbers if number < total]
    num_missing = total - len(there)
    if match and match["shard"] and num_missing:
        # not by listing all: a name may speak of any number of shards
        missing = next(n for n in range(total) if n >= len(there) or there[n] != n)
        name = f"{match['prefix']}-{missing:0{len(match['shard'])}}-of-{match['total']}.parquet"
        more = f", and {num_missing - 1} more" if num_missing > 1 else ""
        raise UserError(
            f"{files[0].shown.rpartition('/')[0]} has {len(there)} of the {total} shards of its "
            f"{split} split: {name} is missing{more}; add it"
        )
    return files


def _by_column(files: Sequence[Location]) -> Layout | None:
    """Return the splits that a column `split` of all Parquet files announces."""
    words: dict[str, None] = {}
    for location in files:
        found = split_words(location)
        if found is None:
            return None
        words |= dict.fromkeys(found)
    of_split: dict[Split, list[str]] = {}
    for word in words:
        if split := SPLIT_OF_NAME.get(word.lower()):
            of_split.setdefault(split, []).append(word)
    unknown = [word for word in words if word.lower() not in SPLIT_OF_NAME]
    notes = [f"rows whose column 'split' says {word!r} are left out" for word in unknown]
    readers = {
        split: partial(_parquet, files, words=of_words) for split, of_words in of_split.items()
    }
    return Layout(readers=readers, notes=tuple(notes)) if readers else None


def _saved(folder: Location, names: Sequence[str]) -> Layout:
    """Return the splits that save_to_disk wrote."""
    of_split = _of_splits(folder, names)
    readers = {split: partial(read_saved, folder / name) for split, name in of_split.items()}
    return Layout(readers=readers)


def _image_folders(folder: Location) -> Layout | None:
    """Return the folders that are called by a split and hold folders of images."""
    of_split = _of_splits(folder, [info.base_name for info in _folders(folder)])
    readers: dict[Split, Reader] = {}
    for split, name in of_split.items():
        if any(_holds_images(folder / name / info.base_name) for info in _folders(folder / name)):
            readers[split] = partial(_class_folders, folder / name)
    return Layout(readers=readers) if "train" in readers else None


def _classes_alone(folder: Location) -> Layout | None:
    """Return folders of classes without splits as a training split."""
    holding = [info for info in _folders(folder) if _holds_images(folder / info.base_name)]
    if len(holding) < 2:
        return None
    return Layout(readers={"train": partial(_class_folders, folder)})


def _class_folders(
    folder: Location, choice: Choice, preferred: Sequence[str]
) -> tuple[Source, tuple[str, ...]] | None:
    for role in ("image", "label"):
        if named := getattr(choice, role):
            raise UserError(
                f"--{role}-column {named}: {folder.shown} holds image files, which have no "
                "columns; leave it out"
            )
    return read_class_folders(folder)


def _of_splits(folder: Location, names: Iterable[str]) -> dict[Split, str]:
    """Return the name of each split, where names announce them."""
    found: dict[Split, str] = {}
    for name in names:
        if split := SPLIT_OF_NAME.get(name.lower()):
            if split in found:
                raise UserError(
                    f"{folder.shown} has more than one {split} split, {found[split]} and {name}: "
                    "keep one of them"
                )
            found[split] = name
    return found


def _folders(folder: Location) -> list[fs.FileInfo]:
    return [info for info in folder.listing() if info.type == fs.FileType.Directory]


def _holds_images(folder: Location) -> bool:
    """Return whether a folder, or one in it, holds a file that is called like an image."""
    inside = folder.listing()
    if any(info.base_name.lower().endswith(SUFFIXES) for info in inside):
        return True
    below = [info for info in inside if info.type == fs.FileType.Directory][:1]
    return any(
        info.base_name.lower().endswith(SUFFIXES)
        for sub in below
        for info in (folder / sub.base_name).listing()
    )
