"""Labels as data sets write them become classes 0 to C - 1, and what was mapped is said."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rayff.config.errors import UserError
from rayff.config.text import is_plain
from rayff.data.columns import is_text
from rayff.data.images import Split

MAX_CLASSES = 2**16
"""Classes at most; labels with more values than that are a mistake."""

Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class RawLabels:
    """The labels of one split as they are written."""

    values: Any
    """Array of pyarrow, (N,)."""
    names: tuple[str, ...] | None
    """Names of the classes that whole numbers stand for, where the data names them."""
    place: Callable[[int], str]
    """Returns where a row is, for messages."""


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """The classes of a data set, and the class of each image."""

    names: tuple[str, ...]
    labels: Mapping[Split, Labels]
    notes: tuple[str, ...]


def map_classes(splits: Mapping[Split, RawLabels], task_names: tuple[str, ...] | None) -> ClassMap:
    """Return the classes of all splits, in one order.

    Labels may be whole numbers, as integers or floats, text, or true and false. Whole numbers that
    the data names, or that are 0 to C - 1, stay; others become classes in ascending order.

    Args:
        splits: the labels of each split.
        task_names: the classes of a named task; None for those of the data.

    Raises:
        UserError: a label is null, negative, not whole or unknown, or names contradict each other.
    """
    values = {split: _plain_values(raw) for split, raw in splits.items()}
    texts = [is_text(value.type) for value in values.values()]
    if any(texts) != all(texts):
        kinds = ", ".join(f"{value.type} in {split}" for split, value in values.items())
        raise UserError(f"the labels of the splits are of several types ({kinds}): use one")
    if all(texts):
        return _by_text(values, task_names)
    return _by_number(values, task_names, splits)


def _plain_values(raw: RawLabels) -> Any:
    """Return labels as text or int64, without nulls."""
    values = raw.values
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if values.null_count:
        row = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        raise row_error(raw.place(row), "the label is null")
    if is_text(values.type):
        return values.cast(pa.string())
    if pa.types.is_boolean(values.type):
        return pa.array(np.where(values.to_numpy(zero_copy_only=False), "true", "false"))
    numbers = values.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind == "f":
        odd = ~(np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < 2**53))
        if odd.any():
            row = int(np.argmax(odd))
            raise row_error(raw.place(row), f"the label is {numbers[row]}, not a whole number")
    elif numbers.dtype == np.uint64 and (too_large := numbers > np.iinfo(np.int64).max).any():
        row = int(np.argmax(too_large))
        raise row_error(raw.place(row), f"the label is {numbers[row]}, which is too large")
    return pa.array(numbers.astype(np.int64))


def _by_text(values: Mapping[Split, Any], task_names: tuple[str, ...] | None) -> ClassMap:
    """Map labels that are words."""
    words = sorted({word for value in values.values() for word in value.unique().to_pylist()})
    for word in words:
        _check_name(word, "a label")
    _check_count(len(words))
    if task_names is None:
        numeric = all(re.fullmatch("[0-9]{1,15}", word) for word in words)
        names = tuple(sorted(words, key=int) if numeric else words)
        notes = [f"{_quoted(names)} became classes 0 to {len(names) - 1}, in this order"]
    else:
        names, notes = task_names, ["labels are words, and were matched with the task's classes"]
    known = {_bare(name): index for index, name in enumerate(names)}
    of_word = {}
    for word in words:
        index = names.index(word) if word in names else known.get(_bare(word))
        if index is None:
            raise _not_the_tasks(f"the label {word!r}", names)
        of_word[word] = index
    labels = {split: _look_up(value, of_word) for split, value in values.items()}
    return ClassMap(names=names, labels=labels, notes=(*notes, *_presence(labels, names)))


def _look_up(value: Any, of_word: Mapping[str, int]) -> Labels:
    encoded = value.dictionary_encode()
    table = np.array([of_word[word] for word in encoded.dictionary.to_pylist()], np.int64)
    found: Labels = table[encoded.indices.to_numpy()]
    return found


def _by_number(
    values: Mapping[Split, Any],
    task_names: tuple[str, ...] | None,
    splits: Mapping[Split, RawLabels],
) -> ClassMap:
    """Map labels that are whole numbers."""
    numbers = {split: value.to_numpy() for split, value in values.items()}
    notes: list[str] = []
    declared = {split: raw.names for split, raw in splits.items() if raw.names is not None}
    for declared_names in declared.values():
        for name in declared_names:
            _check_name(name, "a class of the metadata")
    known = task_names or next(iter(declared.values()), None)
    for split, found in numbers.items():
        limit = len(splits[split].names or known or ()) or None
        outside = (found < 0) if limit is None else (found < 0) | (found >= limit)
        if outside.any():
            row = int(np.argmax(outside))
            expected = "0 or more" if limit is None else f"0 to {limit - 1}"
            raise row_error(
                splits[split].place(row), f"the label is {found[row]}, expected {expected}"
            )
    names: tuple[str, ...]
    if known is None:
        there = np.unique(np.concatenate(list(numbers.values())))
        _check_count(len(there))
        names = tuple(map(str, there))
        if there[-1] != len(there) - 1:
            notes.append(
                f"labels {_quoted(names, '')} became classes 0 to {len(names) - 1}, in this order"
            )
            numbers = {split: np.searchsorted(there, found) for split, found in numbers.items()}
    else:
        names = known
        for split, own in declared.items():
            if own != names:
                table = _same_names(own, names, split, is_task=task_names is not None)
                numbers[split] = table[numbers[split]]
                if (table != np.arange(len(table))).any():
                    notes.append(
                        f"the {split} split names its classes in another order; its labels were "
                        "matched by name"
                    )
    labels = {split: np.asarray(found, np.int64) for split, found in numbers.items()}
    return ClassMap(names=names, labels=labels, notes=(*notes, *_presence(labels, names)))


def _same_names(
    own: tuple[str, ...], names: tuple[str, ...], split: str, *, is_task: bool
) -> Labels:
    """Return the class of each number of a split that has names of its own."""
    known = {_bare(name): index for index, name in enumerate(names)}
    table = [known.get(_bare(name)) for name in own]
    if len(own) != len(names) or None in table or len(set(table)) < len(table):
        if is_task:
            raise _not_the_tasks(f"its classes, {_quoted(own)}", names)
        raise UserError(
            f"the {split} split names {len(own)} classes, {_quoted(own)}, but the first split "
            f"{len(names)}, {_quoted(names)}: give all splits the same classes"
        )
    return np.array(table, np.int64)


def _not_the_tasks(what: str, names: tuple[str, ...]) -> UserError:
    return UserError(
        f"the data contradicts the task: {what}, but the task's classes are {_quoted(names)}; "
        "name the folder itself with --task DIR, or another task"
    )


def _presence(labels: Mapping[Split, Labels], names: tuple[str, ...]) -> list[str]:
    """Return a note on classes that some splits lack."""
    counts = {
        split: np.bincount(found, minlength=len(names))
        for split, found in labels.items()
        if len(found)
    }
    total = np.sum([*counts.values()], axis=0)
    notes = []
    for split, there in counts.items():
        missing = np.flatnonzero((there == 0) & (total > 0))
        if len(missing):
            shown = _quoted([names[index] for index in missing])
            notes.append(f"no image of the {split} split is of {_classes(len(missing))} {shown}")
    if nowhere := int((total == 0).sum()):
        notes.append(f"{nowhere} of {len(names)} classes have no image at all")
    return notes


def _classes(number: int) -> str:
    return "class" if number == 1 else "classes"


def _check_count(number: int) -> None:
    if number > MAX_CLASSES:
        raise UserError(
            f"the labels have {number:,} different values, more than {MAX_CLASSES:,} classes: "
            "name the column of the classes with --label-column"
        )
    if number < 2:
        raise UserError(
            "all images have the same label, and a classifier needs 2 classes or more: name the "
            "column of the classes with --label-column"
        )


def _check_name(name: str, what: str) -> None:
    if not is_plain(name):
        raise UserError(f"{what}, {name!a}, is no plain text: correct it")


def _bare(name: str) -> str:
    """Return a name without case, spaces and punctuation, for a comparison."""
    return re.sub(r"[\W_]+", "", name.lower()) or name


def _quoted(names: Any, quote: str = "'", most: int = 5) -> str:
    """Return a list in words, cut short."""
    shown = [f"{quote}{name}{quote}" for name in names[:most]]
    return ", ".join([*shown, *([f"... ({len(names)} in all)"] if len(names) > most else [])])


def row_error(place: str, problem: str) -> UserError:
    """Return the error of a row."""
    return UserError(f"{place}: {problem}; correct or drop that row")
